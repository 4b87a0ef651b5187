"""Which file is that of an entry with a repository, and what is said while there is none."""

from pathlib import Path

import pytest

from llamaherd_supervisor.repositories import Download, explain_absence, find_files

MODELS_DIR = Path("/models")
HERE = {
    "/models/a/b/m-Q8_0.gguf": "Q8_0",
    "/models/a/b/m-UD-Q4_K_XL.gguf": "Q4_K_M",
    "/models/a/b/big-00001-of-00003.gguf": "Q6_K",
    "/models/a/b/deep/m-Q2_K.gguf": "Q2_K",
    "/models/a/c/m-Q2_K.gguf": "Q2_K",
    "/models/m-Q3_K_M.gguf": "Q3_K_M",
}


def found(repository: str, download: Download | None = None, here: dict[str, str] = HERE) -> str | None:
    downloads = {} if download is None else {"gemma": download}
    return find_files({"gemma": repository}, downloads, here, models_dir=MODELS_DIR).get("gemma")


@pytest.mark.parametrize(
    ("repository", "path"),
    [
        ("a/b:Q8_0", "/models/a/b/m-Q8_0.gguf"),
        ("hf.co/a/b:q8_0", "/models/a/b/m-Q8_0.gguf"),
        ("a/b:Q4_K_XL", "/models/a/b/m-UD-Q4_K_XL.gguf"),
        ("a/b:m-Q8_0.gguf", "/models/a/b/m-Q8_0.gguf"),
        ("a/b:Q8/m-Q8_0.gguf", "/models/a/b/m-Q8_0.gguf"),
        ("a/b", "/models/a/b/m-Q8_0.gguf"),
        ("a/c", "/models/a/c/m-Q2_K.gguf"),
        ("a/b:Q2_K", None),
        ("a/b:Q3_K_M", None),
        ("a/d", None),
        ("A/B:Q8_0", None),
    ],
)
def test_file_is_looked_for_where_a_pull_puts_it(repository: str, path: str | None) -> None:
    assert found(repository) == path


def test_quantization_that_no_name_tells_is_read_from_the_file() -> None:
    assert found("a/b:Q6_K") == "/models/a/b/big-00001-of-00003.gguf"


def test_which_of_several_is_meant_the_hub_must_tell() -> None:
    several = {"/models/a/b/m-Q5_K.gguf": "Q5_K_M", "/models/a/b/m-Q6_K.gguf": "Q6_K"}

    assert found("a/b", here=several) is None


def test_file_that_came_for_the_entry_counts_wherever_it_is() -> None:
    came = Download(repository="a/b", path="/models/m-Q3_K_M.gguf")

    assert found("a/b", came) == "/models/m-Q3_K_M.gguf"
    assert found("a/b:Q8_0", came) == "/models/a/b/m-Q8_0.gguf", "it came for another one"
    assert found("a/c", Download(repository="a/c", path="/models/gone.gguf")) == "/models/a/c/m-Q2_K.gguf"


@pytest.mark.parametrize(
    ("download", "reason", "retry_after_s"),
    [
        (None, "it is not in the models folder: `llamaherd load gemma` downloads it from a/b:Q8_0", None),
        (
            Download(repository="a/c", under_way=True),
            "it is not in the models folder: `llamaherd load gemma` downloads it from a/b:Q8_0",
            None,
        ),
        (Download(repository="a/b:Q8_0", under_way=True), "it is being downloaded from a/b:Q8_0", 10),
        (
            Download(repository="a/b:Q8_0", under_way=True, done_bytes=379, total_bytes=1000),
            "it is being downloaded from a/b:Q8_0: 37 %",
            10,
        ),
        (
            Download(repository="a/b:Q8_0", failure="the disk is full"),
            "it could not be downloaded from a/b:Q8_0: the disk is full; `llamaherd load gemma` tries again",
            None,
        ),
        (
            Download(repository="a/b:Q8_0", failure="the disk is full", again_s=120),
            "it could not be downloaded from a/b:Q8_0: the disk is full;"
            " it is tried again in 120 s, and `llamaherd load gemma` tries at once",
            None,
        ),
        (
            Download(repository="a/b:Q8_0", unfit="it requires gpu: h200"),
            "a/b:Q8_0 is not downloaded to this node: it requires gpu: h200",
            None,
        ),
    ],
)
def test_why_there_is_no_file_is_said(download: Download | None, reason: str, retry_after_s: float | None) -> None:
    told = explain_absence("n", "gemma", "a/b:Q8_0", download, now_ns=5)

    assert (told.node, told.model, told.at_ns, told.path) == ("n", "gemma", 5, "")
    assert (told.reason, told.retry_after_s) == (reason, retry_after_s)

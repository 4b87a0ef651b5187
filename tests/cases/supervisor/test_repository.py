"""Which files of a repository are meant."""

import re

import pytest

from llamaherd_shared.errors import HerdError, NotFound, Rejected
from llamaherd_shared.repository import parse_repository
from llamaherd_supervisor.file_names import kinship, quantization_of
from llamaherd_supervisor.pulls.repository import (
    HubFile,
    check_name,
    check_revision,
    choose,
    file_names,
    projector_file,
)

GEMMA = ["README.md", "gemma-3-270m-it-Q8_0.gguf", "gemma-3-270m-it-F16.gguf", "mmproj-model-f16.gguf"]
SPLIT = [f"Q4_K_M/Big-Q4_K_M-0000{part}-of-00003.gguf" for part in (1, 2, 3)]


def files(names: list[str]) -> list[HubFile]:
    return [HubFile(name=name, size_bytes=1) for name in names]


def chosen(names: list[str], wanted: str = "") -> list[str]:
    return [file.name for file in choose("owner/name", files(names), wanted).files]


@pytest.mark.parametrize(
    ("text", "name", "quantization"),
    [
        ("ggml-org/gemma-3-270m-it-GGUF", "ggml-org/gemma-3-270m-it-GGUF", ""),
        ("ggml-org/gemma-3-270m-it-GGUF:Q8_0", "ggml-org/gemma-3-270m-it-GGUF", "Q8_0"),
        ("hf.co/a/b:latest", "a/b", "latest"),
        ("https://huggingface.co/a/b.c_d/", "a/b.c_d", ""),
        (" HF.co/a/b ", "a/b", ""),
    ],
)
def test_repository_is_written_in_the_usual_ways(text: str, name: str, quantization: str) -> None:
    found = parse_repository(text)

    assert (found.name, found.quantization) == (name, quantization)


@pytest.mark.parametrize(
    "text", ["", "gemma", "a/b/c", "a/..", "../b", "a/b?x", "https://example.com/a/b", "a/b\x00", "größe/b"]
)
def test_what_is_no_repository_is_refused(text: str) -> None:
    with pytest.raises(Rejected, match="OWNER/NAME"):
        parse_repository(text)


@pytest.mark.parametrize(
    ("others", "wanted", "projector"),
    [
        ([], "Q8_0", None),
        (["mmproj-model-f16.gguf"], "Q8_0", "mmproj-model-f16.gguf"),
        (["mmproj-F32.gguf", "mmproj-BF16.gguf", "mmproj-F16.gguf"], "F16", "mmproj-F16.gguf"),
        (["mmproj-Q8_0.gguf", "mmproj-BF16.gguf"], "Q8_0", "mmproj-BF16.gguf"),
        (["mmproj-gemma-3-270m-it-Q8_0.gguf", "mmproj-F16.gguf"], "Q8_0", "mmproj-gemma-3-270m-it-Q8_0.gguf"),
        (["mmproj-other-f16.gguf"], "Q8_0", "mmproj-other-f16.gguf"),
        (["gemma-3-4b-Q4_0.gguf", "mmproj-gemma-3-4b-f16.gguf"], "Q8_0", None),
        (["sub/mmproj-F16.gguf"], "Q8_0", None),
        (["big/gemma-3-9b-Q2_K.gguf", "mmproj-F16.gguf"], "Q2_K", "mmproj-F16.gguf"),
        (["big/gemma-3-9b-Q2_K.gguf", "mmproj-F16.gguf", "big/mmproj-F32.gguf"], "Q2_K", "big/mmproj-F32.gguf"),
        (["mmproj-F16.safetensors", "mmproj-F16.gguf.asc"], "Q8_0", None),
    ],
)
def test_projector_comes_along_with_its_model(others: list[str], wanted: str, projector: str | None) -> None:
    offered = [*GEMMA[:3], *others]

    found = choose("owner/name", files(offered), wanted).projector
    again = choose("owner/name", files(offered[::-1]), wanted).projector

    assert (found.name if found else None) == projector
    assert found == again


@pytest.mark.parametrize(
    ("model", "path", "file"),
    [
        ("gemma-3-4b-it-Q4_K_M", "mmproj-model-f16.gguf", "mmproj-gemma-3-4b-it-F16.gguf"),
        ("gemma-3-4b-it-Q4_K_M", "q4/mmproj.gguf", "mmproj-gemma-3-4b-it.gguf"),
        ("gemma-3-4b-it-Q4_K_M", "mmproj-gemma-3-4b-it-f16.gguf", "mmproj-gemma-3-4b-it-f16.gguf"),
        ("mine", "mmproj-gemma-3-4b-it-f16.gguf", "mmproj-mine-F16.gguf"),
        ("Q8_0", "mmproj-F16.gguf", "mmproj-Q8_0-F16.gguf"),
    ],
)
def test_projector_is_called_so_that_it_is_found_again(model: str, path: str, file: str) -> None:
    assert projector_file(model, path) == file
    assert kinship(model, file.removesuffix(".gguf")) or model == "Q8_0"


@pytest.mark.parametrize(
    ("name", "quantization"),
    [
        ("gemma-3-270m-it-Q8_0", "Q8_0"),
        ("Llama-3.2-1B-Instruct-Q4_K_M", "Q4_K_M"),
        ("model.Q4_K_M", "Q4_K_M"),
        ("Qwen3-8B-UD-Q4_K_XL", "UD-Q4_K_XL"),
        ("model-iq2_xxs", "IQ2_XXS"),
        ("gpt-oss-20b-mxfp4", "MXFP4"),
        ("model-BF16", "BF16"),
        ("Q4_K_M", "Q4_K_M"),
        ("model-Q4_K_M-imat", "Q4_K_M"),
        ("TQ1_0", "TQ1_0"),
        ("quack", ""),
        ("Qwen3-8B", ""),
    ],
)
def test_quantization_is_read_from_the_name(name: str, quantization: str) -> None:
    assert quantization_of(name) == quantization


@pytest.mark.parametrize(
    ("names", "wanted", "found"),
    [
        (GEMMA, "", ["gemma-3-270m-it-Q8_0.gguf"]),
        (GEMMA, "f16", ["gemma-3-270m-it-F16.gguf"]),
        (GEMMA, "gemma-3-270m-it-F16.gguf", ["gemma-3-270m-it-F16.gguf"]),
        ([*GEMMA, "gemma-3-270m-it-Q4_K_M.gguf"], "", ["gemma-3-270m-it-Q4_K_M.gguf"]),
        (["only-Q5_0.gguf"], "", ["only-Q5_0.gguf"]),
        (["nameless.gguf"], "", ["nameless.gguf"]),
        (SPLIT[::-1], "", SPLIT),
        (SPLIT, SPLIT[0], SPLIT),
        (SPLIT, "Big-Q4_K_M-00002-of-00003.gguf", SPLIT),
        (["m-UD-Q4_K_XL.gguf", "m-Q2_K.gguf"], "Q4_K_XL", ["m-UD-Q4_K_XL.gguf"]),
        (["m-UD-Q4_K_M.gguf", "m-Q4_K_M.gguf"], "", ["m-Q4_K_M.gguf"]),
        (["IQ4_XS/m-00001-of-00001.gguf", "m-Q2_K.gguf"], "IQ4_XS", ["IQ4_XS/m-00001-of-00001.gguf"]),
    ],
)
def test_model_is_chosen(names: list[str], wanted: str, found: list[str]) -> None:
    assert chosen(names, wanted) == found


@pytest.mark.parametrize(
    ("names", "wanted", "error", "sentence"),
    [
        (["README.md", "mmproj-f16.gguf", "model.imatrix.gguf"], "", NotFound, "no model in the GGUF format"),
        (GEMMA, "Q2_K", NotFound, "owner/name has no Q2_K; it has F16, Q8_0"),
        (GEMMA, "other.gguf", NotFound, "has no other.gguf"),
        (["m-Q2_K.gguf", "m-Q3_K_S.gguf"], "", Rejected, "name one of Q2_K, Q3_K_S"),
        (["a-Q4_K_M.gguf", "b-Q4_K_M.gguf"], "", Rejected, "name one of a-Q4_K_M.gguf, b-Q4_K_M.gguf"),
        (["a.gguf", "b.gguf"], "", Rejected, "name one of a.gguf, b.gguf"),
        (SPLIT[:2], "", Rejected, "only some parts of Big-Q4_K_M: 2 of 3"),
        ([*SPLIT, "Q4_K_M/Big-Q4_K_M.gguf"], "", Rejected, "only some parts"),
    ],
)
def test_what_cannot_be_chosen_is_told_with_what_there_is(
    names: list[str], wanted: str, error: type[HerdError], sentence: str
) -> None:
    with pytest.raises(error, match=re.escape(sentence)):
        chosen(names, wanted)


@pytest.mark.parametrize("name", ["cria", "Llama-3.1-8B.Q4_K_M", "größe"])
def test_file_name_is_a_name(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".hidden", "a/b", "a\\b", "..", "x" * 200, "a\n", " a", "m-00001-of-00002", "m.gguf", "m.gguf.part"]
)
def test_what_is_no_file_name_is_no_name(name: str) -> None:
    with pytest.raises(Rejected, match="cannot be the name of a model"):
        check_name(name)


def test_revision_stays_within_the_repository() -> None:
    assert check_revision("refs/pr/1") == "refs/pr/1"
    for wrong in ("", "../main", "a?b", "-x"):
        with pytest.raises(Rejected):
            check_revision(wrong)


def test_files_of_a_model_are_named_after_it() -> None:
    assert file_names("m", 1) == ["m.gguf"]
    assert file_names("m", 2) == ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]

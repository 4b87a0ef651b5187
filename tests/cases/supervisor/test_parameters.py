"""Parameters of llama-server, read from its help (`tests/golden/llama_server/help.txt`, by `record_output.py`)."""

import re
from functools import cache
from pathlib import Path

import pytest

from llamaherd_shared.commands import Parameter
from llamaherd_shared.model_options import FLAGS, OWNED
from llamaherd_supervisor.parameters import parse_help

HELP = (Path(__file__).parents[2] / "golden" / "llama_server" / "help.txt").read_text()


@cache
def known() -> dict[str, Parameter]:
    """Every parameter of the recorded help by each of its flags."""
    return {
        flag: parameter
        for category in parse_help(HELP)
        for parameter in category.parameters
        for flag in (*parameter.flags, *parameter.off)
    }


def parse_one(*lines: str) -> Parameter:
    (category,) = parse_help("----- common params -----\n\n" + "\n".join(lines))
    (parameter,) = category.parameters
    return parameter


def test_every_parameter_of_the_help_is_found_in_its_category() -> None:
    found = {category.name: len(category.parameters) for category in parse_help(HELP)}

    assert found == {"common": 82, "sampling": 34, "speculative": 44, "server": 96}
    assert sum(found.values()) == len(re.findall(r"^--?\w", HELP, re.MULTILINE))


def test_nothing_of_the_help_is_lost() -> None:
    """All its words but the frame are in one field or another."""
    words = [
        word
        for category in parse_help(HELP)
        for parameter in category.parameters
        for text in (*parameter.flags, *parameter.off, parameter.value, parameter.description, parameter.variable)
        for word in re.findall(r"[\w-]+", text)
    ]

    framed = re.sub(r"^-----.*-----$|\(env: ", "", HELP, flags=re.MULTILINE)
    assert sorted(words) == sorted(re.findall(r"[\w-]+", framed))


def test_the_words_that_have_a_name_here_are_words_of_this_llama_server() -> None:
    words = {word for flag in FLAGS.values() for word in (*flag.on, *flag.off)}

    assert words - known().keys() == set()
    assert OWNED - known().keys() == set()


def test_parameter_with_a_name_here_says_so() -> None:
    assert known()["-c"].option == "context_tokens"
    assert known()["--no-kv-offload"].option == "kv_offload"
    assert known()["--lora"].option == known()["--lora-scaled"].option == "lora"
    assert {parameter.option for parameter in known().values()} == {"", *FLAGS} - {"experts"}


def test_parameter_that_is_the_supervisors_says_so() -> None:
    assert known()["--port"].owned
    assert known()["--no-slots"].owned
    assert not known()["--keep"].owned
    assert not known()["--ctx-size"].owned


def test_flags_value_default_variable_and_description_are_told_apart() -> None:
    assert known()["--ctx-size"] == Parameter(
        flags=["-c", "--ctx-size"],
        value="N",
        default="0",
        variable="LLAMA_ARG_CTX_SIZE",
        description="size of the prompt context (default: 0, 0 = loaded from model)",
        option="context_tokens",
    )


@pytest.mark.parametrize(
    ("flag", "on", "off"),
    [
        ("-kvo", ["-kvo", "--kv-offload"], ["-nkvo", "--no-kv-offload"]),
        ("--repack", ["--repack"], ["-nr", "--no-repack"]),
        ("--perf", ["--perf"], ["--no-perf"]),
        ("-e", ["-e", "--escape"], ["--no-escape"]),
        ("-ag", ["-ag", "--agent"], ["-no-ag", "--no-agent"]),
        ("--ui", ["--ui", "--webui"], ["--no-ui", "--no-webui"]),
        ("--no-host", ["--no-host"], []),
        ("-ncmoe", ["-ncmoe", "--n-cpu-moe"], []),
    ],
)
def test_flags_that_mean_the_opposite_are_told_apart(flag: str, on: list[str], off: list[str]) -> None:
    assert (known()[flag].flags, known()[flag].off) == (on, off)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--control-vector-layer-range", "START END"),
        ("--override-tensor", "<tensor name pattern>=<buffer type>,..."),
        ("--logit-bias", "TOKEN_ID(+/-)BIAS"),
        ("--hf-repo", "<user>/<model>[:quant]"),
        ("--fit-target", "MiB0,MiB1,MiB2,..."),
        ("--jinja", ""),
    ],
)
def test_what_follows_a_flag_is_kept_in_the_helps_words(flag: str, value: str) -> None:
    assert known()[flag].value == value


@pytest.mark.parametrize(
    ("flag", "allowed"),
    [
        ("--flash-attn", ["on", "off", "auto"]),
        ("--pooling", ["none", "mean", "cls", "last", "rank"]),
        ("--poll-batch", ["0", "1"]),
        ("--cache-type-k", ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"]),
        ("--load-mode", ["auto", "none", "mmap", "mlock", "mmap+mlock", "dio"]),
        ("--numa", ["distribute", "isolate", "numactl"]),
        ("--reasoning-format", ["none", "deepseek", "deepseek-legacy", "auto"]),
        ("--verbosity", ["0", "1", "2", "3", "4", "5"]),
        ("--poll", []),
        ("--device", []),
        ("--tensor-split", []),
        ("--tools-runtime", []),
    ],
)
def test_values_are_listed_where_the_help_lists_them(flag: str, allowed: list[str]) -> None:
    assert known()[flag].allowed == allowed


@pytest.mark.parametrize(
    ("flag", "default"),
    [
        ("--threads", "-1"),
        ("--n-predict", "-1"),
        ("--poll", "50"),
        ("--cpu-mask", ""),
        ("--yarn-orig-ctx", "0"),
        ("--flash-attn", "auto"),
        ("--reasoning", "auto"),
        ("--split-mode", "layer"),
        ("--fit-target", "1024"),
        ("--cache-ram", "8192"),
        ("--threads-batch", "same as --threads"),
        ("--cors-methods", "GET, POST, DELETE, OPTIONS"),
        ("--samplers", "penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature"),
        ("--chat-template", "template taken from model's metadata"),
        ("--lora", None),
    ],
)
def test_default_is_what_the_help_tells(flag: str, default: str | None) -> None:
    assert known()[flag].default == default


def test_lines_that_were_folded_are_whole_again_and_others_stay() -> None:
    assert known()["--keep"].description == ("number of tokens to keep from the initial prompt (default: 0, -1 = all)")
    assert known()["--lazy-mode"].description.splitlines() == [
        "on-demand reading of certain tensors, for example per-layer embeddings",
        "(default: auto)",
        "- on: read the rows of such tensors from disk on demand instead of keeping them resident (requires mmap)",
        "- auto: on, but only for tensors larger than 4 GiB",
        "- off: always keep them resident",
    ]


def test_categories_of_another_version_are_taken_as_they_are() -> None:
    text = "----- new things params -----\n\n--new N   does it\n----- example-specific params -----\n--old   did it\n"

    assert [(category.name, category.parameters[0].description) for category in parse_help(text)] == [
        ("new things", "does it"),
        ("server", "did it"),
    ]


def test_parameter_without_a_value_a_description_or_a_known_indent_is_one_all_the_same() -> None:
    assert parse_one("--bare") == Parameter(flags=["--bare"])
    assert parse_one("--two A B").value == "A B"
    assert parse_one("--short X  what it does", "   and more (default: 3)").description == (
        "what it does\nand more (default: 3)"
    )


@pytest.mark.parametrize(
    "text", ["", "usage: something else\n", "error while loading shared libraries\n", "----- x -----\n"]
)
def test_text_that_is_no_help_has_no_parameters(text: str) -> None:
    assert parse_help(text) == []

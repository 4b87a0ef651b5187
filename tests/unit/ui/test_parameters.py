"""Parameters of llama-server, as they were asked for."""

import pytest

from llamaherd_shared.commands import Parameter, ParameterCategory, Parameters
from llamaherd_shared.errors import NotFound, Unavailable
from llamaherd_ui.parameters import pick_teller, select_parameters
from llamaherd_ui.projection import Node

CTX = Parameter(
    flags=["-c", "--ctx-size"], variable="LLAMA_ARG_CTX_SIZE", option="context_tokens", description="size of the prompt"
)
KV = Parameter(flags=["--kv-offload"], off=["--no-kv-offload"], description="whether the KV cache is offloaded")
TEMP = Parameter(flags=["--temp"], description="Temperature (default: 0.8)")
TOLD = Parameters(
    node="n1",
    llama_server="/ls",
    categories=[
        ParameterCategory(name="common", parameters=[CTX, KV]),
        ParameterCategory(name="sampling", parameters=[TEMP]),
    ],
)


def found(category: str | None = None, search: str | None = None) -> list[Parameter]:
    told = select_parameters(TOLD, category=category, search=search)
    return [parameter for each in told.categories for parameter in each.parameters]


def host(name: str, *, llama_server: str = "/ls", left_ns: int | None = None) -> Node:
    return Node(
        node=name, version="1", cpus=1, memory_bytes=1, models_dir="/m", llama_server=llama_server, joined_ns=1,
        left_ns=left_ns,
    )  # fmt: skip


def test_without_a_wish_all_are_told() -> None:
    assert select_parameters(TOLD, category=None, search=None) == TOLD
    assert found("", "  ") == [CTX, KV, TEMP]


def test_a_category_is_told_alone() -> None:
    assert found("sampling") == [TEMP]


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (
            "samplng",
            "llama-server has no category samplng of parameters (did you mean sampling?); it has common, sampling",
        ),
        ("Common", "llama-server has no category Common of parameters (did you mean common?); it has common, sampling"),
        ("xyz", "llama-server has no category xyz of parameters; it has common, sampling"),
    ],
)
def test_category_that_there_is_not_is_refused_with_those_there_are(typed: str, sentence: str) -> None:
    with pytest.raises(NotFound) as refused:
        found(typed)

    assert str(refused.value) == sentence


@pytest.mark.parametrize(
    ("words", "parameters"),
    [
        ("ctx_size", [CTX]),
        ("CONTEXT_TOKENS", [CTX]),
        ("llama_arg_ctx", [CTX]),
        ("temperature default", [TEMP]),
        ("no-kv", [KV]),
        ("size kv", []),
    ],
)
def test_all_words_must_be_in_what_is_told_of_a_parameter(words: str, parameters: list[Parameter]) -> None:
    assert found(search=words) == parameters


def test_categories_without_a_find_are_left_out() -> None:
    told = select_parameters(TOLD, category=None, search="temp")

    assert [category.name for category in told.categories] == ["sampling"]


def test_the_first_node_that_has_a_llama_server_is_asked() -> None:
    gone, bare, able = host("a", left_ns=9), host("b", llama_server=""), host("c")
    entities = {f"node/{each.node}": each for each in (gone, bare, able)}

    assert pick_teller(entities, None) == "c"
    assert pick_teller(entities, "b") == "b"
    assert pick_teller({"node/b": bare}, None) == "b"


def test_without_a_node_it_is_said_what_to_do() -> None:
    with pytest.raises(NotFound, match="there is no node x; there are: c"):
        pick_teller({"node/c": host("c")}, "x")
    with pytest.raises(Unavailable, match="llamaherd up"):
        pick_teller({"node/a": host("a", left_ns=9)}, None)

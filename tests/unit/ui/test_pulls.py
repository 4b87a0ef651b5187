"""Which node gets a model that is pulled."""

import msgspec
import pytest

from llamaherd_shared.commands import PullModel
from llamaherd_shared.errors import HerdError, NotFound, Rejected, Unavailable
from llamaherd_ui.projection import Node
from llamaherd_ui.pulls import NewPull, pick_puller, render_command

ONE = Node(node="one", version="0.1", cpus=1, memory_bytes=1, models_dir="/m", llama_server="", joined_ns=1)
TWO = msgspec.structs.replace(ONE, node="two")
GONE = msgspec.structs.replace(ONE, node="gone", left_ns=2)


def pick(*nodes: Node, node: str | None = None) -> str:
    return pick_puller({f"node/{each.node}": each for each in nodes}, node)


def test_only_node_that_is_there_pulls() -> None:
    assert pick(GONE, ONE) == "one"


def test_node_that_is_named_pulls() -> None:
    assert pick(ONE, TWO, node="two") == "two"


@pytest.mark.parametrize(
    ("nodes", "node", "error", "sentence"),
    [
        ((ONE, TWO), None, Rejected, r"\(`node`\): one, two"),
        ((ONE,), "two", NotFound, "there is no node two; there are: one"),
        ((GONE,), "gone", NotFound, "there are: none"),
        ((), None, Unavailable, "no supervisor is running"),
    ],
)
def test_no_node_is_told_with_those_there_are(
    nodes: tuple[Node, ...], node: str | None, error: type[HerdError], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        pick(*nodes, node=node)


def test_wish_becomes_a_command() -> None:
    assert render_command(NewPull(repository="a/b:Q8_0", name="n", node="one")) == PullModel(
        repository="a/b:Q8_0", name="n"
    )

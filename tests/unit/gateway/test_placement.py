"""Which node loads a model."""

from typing import Any

import pytest

from llamaherd_gateway.problems import UnknownModel
from llamaherd_gateway.projection import Fleet, Instance, Model, Node
from llamaherd_gateway.routing.placement import choose_offer, find_candidates, is_fresh, settled_node
from llamaherd_gateway.routing.table import ModelUnusable
from llamaherd_shared.commands import Offer
from llamaherd_shared.events.placement import PlacementDecided

SECOND = 10**9


def fleet(*instances: Instance, nodes: dict[str, bool], models: list[Model]) -> Fleet:
    return Fleet(
        {name: Node(node=name, joined=joined) for name, joined in nodes.items()},
        {(model.node, model.model): model for model in models},
        {instance.key: instance for instance in instances},
    )


def model(node: str = "n1", name: str = "cria", **fields: Any) -> Model:
    return Model(node=node, model=name, **fields)


def instance(node: str, state: Any, name: str = "cria") -> Instance:
    return Instance(node=node, model=name, state=state)


def test_nodes_with_the_file_and_a_supervisor_are_asked() -> None:
    nodes = {"n1": True, "n2": True, "n3": False, "n4": True}
    models = [model("n2"), model("n1"), model("n3"), model("n4", rejected="truncated"), model("n4", "other")]

    assert find_candidates(fleet(nodes=nodes, models=models), "cria") == ["n1", "n2"]


def test_why_a_model_cannot_be_loaded_is_said() -> None:
    models = [model(rejected="the file is truncated"), model("n2", "away")]
    herd = fleet(nodes={"n1": True, "n2": False}, models=models)

    with pytest.raises(ModelUnusable, match="the file is truncated"):
        find_candidates(herd, "cria")
    with pytest.raises(ModelUnusable, match="n2, where no supervisor runs"):
        find_candidates(herd, "away")
    with pytest.raises(UnknownModel, match="'nothing' does not exist"):
        find_candidates(herd, "nothing")


def test_model_that_is_on_its_way_to_a_node_is_worth_asking_for_again() -> None:
    models = [model("n1", rejected="the file is truncated"), model("n2", rejected="37 % of it", retry_after_s=10.0)]

    with pytest.raises(ModelUnusable, match="'cria' on n2 cannot be served yet: 37 % of it") as refused:
        find_candidates(fleet(nodes={"n1": True, "n2": True}, models=models), "cria")

    assert refused.value.retry_after_s == 10


def test_nobody_is_asked_where_there_is_no_choice_or_a_load_is_under_way() -> None:
    here = {"nodes": {"n1": True, "n2": True}, "models": [model("n1"), model("n2")]}

    assert settled_node(fleet(**here), "cria", ["n1"]) == "n1"
    assert settled_node(fleet(instance("n2", "waiting"), **here), "cria", ["n1", "n2"]) == "n2"
    assert settled_node(fleet(instance("n2", "loading"), instance("n1", "waiting"), **here), "cria", ["n1", "n2"]) == (
        "n2"
    )
    assert settled_node(fleet(instance("n2", "loading", "other"), **here), "cria", ["n1", "n2"]) is None
    assert settled_node(fleet(instance("n1", "failed"), **here), "cria", ["n1", "n2"]) is None
    assert settled_node(fleet(instance("n1", "loading"), **here), "cria", ["n2", "n3"]) is None


BEST: dict[str, tuple[Offer, ...]] = {
    "nothing is unloaded": (Offer(node="b"), Offer(node="a", evicts_bytes=1)),
    "nothing is waited for": (Offer(node="b"), Offer(node="a", waits=True)),
    "waiting is better than unloading": (Offer(node="b", waits=True), Offer(node="a", evicts_bytes=1)),
    "least is unloaded": (Offer(node="b", evicts_bytes=1), Offer(node="a", evicts_bytes=2)),
    "it was loaded quickest": (Offer(node="b", load_s=2), Offer(node="a", load_s=9), Offer(node="c")),
    "most stays free": (Offer(node="b", free_ratio=0.9), Offer(node="a", free_ratio=0.2)),
    "the name decides at last": (Offer(node="a", free_ratio=0.501), Offer(node="b", free_ratio=0.499)),
}


@pytest.mark.parametrize("name", BEST)
def test_the_best_offer_is_taken_whatever_their_order(name: str) -> None:
    best = BEST[name][0]

    assert choose_offer(BEST[name]) == choose_offer(reversed(BEST[name])) == best
    assert choose_offer([]) is None


def test_a_decision_holds_for_some_seconds() -> None:
    decided = PlacementDecided(model="m", node="n", at_ns=100 * SECOND)

    assert is_fresh(decided, now_ns=109 * SECOND)
    assert not is_fresh(decided, now_ns=111 * SECOND)

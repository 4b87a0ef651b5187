"""Where requests go."""

from typing import Any

from llamaherd_gateway.projection import Fleet, Instance, Model, Node
from llamaherd_gateway.routing.table import build_table, pick_instance, unknown_model_message


def fleet(*, nodes: dict[str, bool], models: list[Model], instances: list[Instance] | None = None) -> Fleet:
    return Fleet(
        {name: Node(node=name, joined=joined) for name, joined in nodes.items()},
        {(model.node, model.model): model for model in models},
        {instance.key: instance for instance in instances or []},
    )


def model(node: str = "n1", name: str = "cria", **fields: Any) -> Model:
    return Model(node=node, model=name, **fields)


def instance(node: str = "n1", name: str = "cria", state: Any = "ready", **fields: Any) -> Instance:
    return Instance(node=node, model=name, state=state, **fields)


def test_only_ready_instances_take_work() -> None:
    states = ["loading", "ready", "draining", "stopping", "backoff", "failed", "stopped"]
    herd = fleet(
        nodes={"n1": True}, models=[model()], instances=[instance(state=s, index=n) for n, s in enumerate(states)]
    )
    assert [found.index for found in build_table(herd).ready["cria"]] == [1]


def test_a_ready_instance_is_known_even_when_its_supervisor_is_gone() -> None:
    table = build_table(fleet(nodes={"n1": False}, models=[model()], instances=[instance()]))
    assert table.known == ("cria",)
    assert table.ready["cria"]


def test_models_of_nodes_that_left_and_rejected_files_are_not_offered() -> None:
    models = [model(), model("n2", "away"), model(name="broken", rejected="truncated")]
    assert build_table(fleet(nodes={"n1": True, "n2": False}, models=models)).known == ("cria",)


def test_what_cannot_be_served_is_told_apart_from_what_nobody_has() -> None:
    models = [model(rejected="cut short"), model("n1", "good"), model("n2", "good", rejected="cut short")]
    models.append(model("n3", "gone", rejected="cut short"))

    table = build_table(fleet(nodes={"n1": True, "n2": True, "n3": False}, models=models))

    assert (table.known, table.unusable) == (("good",), ("cria",))


def test_the_instance_with_the_fewest_requests_per_slot_is_picked() -> None:
    small, large = instance(slots=1), instance("n2", slots=4)
    assert pick_instance((small, large), {}) == small
    assert pick_instance((small, large), {small.key: 1, large.key: 2}) == large
    assert pick_instance((small, large), {small.key: 1, large.key: 5}) == small


def test_an_unknown_name_gets_a_suggestion_and_the_known_names() -> None:
    known = ("cria", "llama-3.2-1b")
    message = "the model 'Cria.gguf' does not exist; did you mean 'cria'? Known: cria, llama-3.2-1b"
    assert unknown_model_message("Cria.gguf", known) == message
    assert "did you mean 'llama-3.2-1b'" in unknown_model_message("lama-3.2-1b", known)
    assert unknown_model_message("xyz", known) == "the model 'xyz' does not exist; known: cria, llama-3.2-1b"
    assert "no model is known" in unknown_model_message("xyz", ())


def test_a_long_list_or_name_is_cut() -> None:
    message = unknown_model_message("x" * 10**6, tuple(f"m{n:03}" for n in range(500)))
    assert "and 480 more" in message
    assert len(message) < 500

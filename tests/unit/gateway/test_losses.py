"""Models whose node is gone, and which are to be loaded elsewhere."""

from typing import Any

from llamaherd_gateway.projection import Fleet, Instance, Node
from llamaherd_gateway.routing.attendance import Attendance
from llamaherd_gateway.routing.losses import Losses

GONE = frozenset({"a"})
SILENT_S = 16.0


def fleet(*instances: Instance, a: str = "joined", b: str = "joined") -> Fleet:
    states = {"a": a, "b": b}
    nodes = {
        name: Node(node=name, joined=state != "left", draining=state == "draining") for name, state in states.items()
    }
    return Fleet(nodes, {}, {instance.key: instance for instance in instances})


def on(node: str, state: Any = "ready", *, model: str = "m", cause: str = "") -> Instance:
    return Instance(node=node, model=model, state=state, cause=cause)


def test_model_of_a_node_that_is_silent_is_lost_once() -> None:
    losses = Losses()

    assert losses.follow(fleet(on("a")), ()) == {}
    assert losses.follow(fleet(on("a")), {"a"}) == {"m": GONE}
    assert losses.follow(fleet(on("a")), {"a"}) == {}


def test_model_that_is_elsewhere_too_is_not_lost() -> None:
    losses = Losses()
    herd = fleet(on("a"), on("b", "loading"))
    losses.follow(herd, ())

    assert losses.follow(herd, {"a"}) == {}


def test_model_that_is_on_another_silent_node_is_lost() -> None:
    losses = Losses()
    herd = fleet(on("a"), on("b"))
    losses.follow(herd, ())

    assert losses.follow(herd, {"a", "b"}) == {"m": frozenset({"a", "b"})}


def test_what_was_lost_before_anybody_looked_is_left_alone() -> None:
    losses = Losses()

    assert losses.follow(fleet(on("a")), {"a"}) == {}


def test_models_of_a_drained_node_are_lost_when_it_begins() -> None:
    losses = Losses()
    losses.follow(fleet(on("a")), ())

    assert losses.follow(fleet(on("a"), a="draining"), ()) == {"m": GONE}
    assert losses.follow(fleet(on("a", "stopped", cause="drained"), a="draining"), ()) == {}


def test_models_that_are_stopped_with_their_node_are_lost_when_it_leaves() -> None:
    losses = Losses()
    losses.follow(fleet(on("a"), on("a", model="other")), ())
    stopped = (on("a", "stopped", cause="shutdown"), on("a", "stopped", model="other", cause="unload"))
    losses.follow(fleet(*stopped), ())

    assert losses.follow(fleet(*stopped, a="left"), ()) == {"m": GONE}


def test_models_of_a_node_that_came_back_are_lost_with_it_again() -> None:
    losses = Losses()
    losses.follow(fleet(on("a")), ())
    losses.follow(fleet(on("a")), {"a"})
    losses.follow(fleet(on("a")), ())

    assert losses.follow(fleet(on("a")), {"a"}) == {"m": GONE}


def test_a_node_is_silent_when_three_beats_have_not_come() -> None:
    attendance = Attendance(100.0, silence_s=SILENT_S)
    attendance.hear("a", 105.0)

    assert attendance.silent(["a", "b"], 100.0 + SILENT_S) == frozenset()
    assert attendance.silent(["a", "b"], 101.0 + SILENT_S) == {"b"}
    assert attendance.silent(["a", "b"], 106.0 + SILENT_S) == {"a", "b"}
    assert attendance.heard_since("a", 105.0)
    assert not attendance.heard_since("b", 0.0)


def test_nobody_is_silent_because_the_bus_is_away() -> None:
    attendance = Attendance(100.0, silence_s=SILENT_S)
    attendance.hear("a", 105.0)
    attendance.deaf(150.0)

    assert attendance.silent(["a"], 150.0 + SILENT_S) == frozenset()

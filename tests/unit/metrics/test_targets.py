from functools import reduce

from llamaherd_metrics.targets import Target, Targets, evolve, hear
from llamaherd_shared.events import Event
from llamaherd_shared.events.instance import InstanceExited, InstanceFailed, InstanceProgressed, InstanceStarted
from llamaherd_shared.events.presence import Presence


def started(model: str, pid: int, *, node: str = "box") -> InstanceStarted:
    return InstanceStarted(
        node=node, model=model, at_ns=1, pid=pid, process_started_s=5.0, host="127.0.0.1", port=1, generation=1
    )


def given(*history: Event) -> Targets:
    targets: Targets = {}
    return reduce(lambda known, event: evolve(known, event, node="box"), history, targets)


def test_started_instance_is_a_target_until_it_exits() -> None:
    exited = InstanceExited(node="box", model="cria", at_ns=2, cause="crash")

    assert given(started("cria", 7)) == {"instance/cria/0": Target(7, 5.0)}
    assert given(started("cria", 7), exited) == {}
    assert given(started("cria", 7), exited, started("cria", 8)) == {"instance/cria/0": Target(8, 5.0)}


def test_failed_instance_is_no_target() -> None:
    assert given(started("cria", 7), InstanceFailed(node="box", model="cria", at_ns=2, reason="gave up")) == {}


def test_instances_of_other_nodes_are_left_to_their_collectors() -> None:
    elsewhere = InstanceExited(node="other", model="cria", at_ns=2, cause="crash")

    assert given(started("cria", 7, node="other")) == {}
    assert given(started("cria", 7), elsewhere) == {"instance/cria/0": Target(7, 5.0)}


def test_other_facts_change_nothing() -> None:
    progressed = InstanceProgressed(node="box", model="cria", at_ns=2, stage="weights", ratio=0.5)

    assert given(started("cria", 7), progressed) == {"instance/cria/0": Target(7, 5.0)}


def test_service_is_known_by_its_newest_beat() -> None:
    first = Presence(node="box", service="ui", version="0", pid=3, started_ns=1)
    restarted = Presence(node="box", service="ui", version="0", pid=4, started_ns=2)
    elsewhere = Presence(node="other", service="ui", version="0", pid=5, started_ns=2)

    targets = reduce(lambda known, beat: hear(known, beat, node="box"), [first, restarted, elsewhere], {})

    assert targets == {"service/ui": Target(4)}

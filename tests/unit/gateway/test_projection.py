"""The herd folds from its facts."""

from typing import Any

from harness.instance_facts import NAMES, exited, fold, ready, started
from llamaherd_gateway.projection import Instance, evolve
from llamaherd_shared.events.instance import (
    InstanceDraining,
    InstanceFailed,
    InstanceProgressed,
    InstanceStopping,
    InstanceWaiting,
)
from llamaherd_shared.events.model import ModelFound, ModelRejected, ModelRemoved


def fold_instance(*events: Any) -> Instance:
    return fold(*events).instances["n1", "m1", 0]


def test_a_started_instance_is_loading_and_has_an_address() -> None:
    instance = fold_instance(started(), InstanceProgressed(**NAMES, stage="weights", ratio=0.5))

    assert (instance.state, instance.host, instance.port, instance.generation) == ("loading", "127.0.0.1", 5001, 1)
    assert (instance.stage, instance.ratio, instance.sequence) == ("weights", 0.5, 2)
    assert not instance.was_ready


def test_an_instance_may_wait_for_memory_before_it_starts() -> None:
    waiting = InstanceWaiting(**NAMES, reason="m2, which is at work")

    assert (fold_instance(waiting).state, fold_instance(waiting).awaits) == ("waiting", "m2, which is at work")
    assert fold_instance(exited(restart_at_ns=5), waiting).restart_at_ns is None
    assert fold_instance(waiting, started()).state == "loading"


def test_a_ready_instance_forgets_how_the_spawn_before_it_ended() -> None:
    instance = fold_instance(started(), exited(exit_code=1, last_lines=["bad"], restart_at_ns=5), started(2), ready())

    assert (instance.state, instance.generation, instance.slots) == ("ready", 2, 4)
    assert (instance.last_lines, instance.exit_code) == ((), None)


def test_what_ended_an_instance_is_known_until_it_is_ready_again() -> None:
    crash = exited(exit_code=1, fault="out_of_memory", reason="memory is full", restart_at_ns=5)
    crashed, back = fold_instance(started(), crash), fold_instance(started(), crash, started(2), ready())
    failed = fold_instance(started(), crash, InstanceFailed(**NAMES, reason="gave up", fault="out_of_memory"))

    assert (crashed.fault, crashed.reason) == ("out_of_memory", "memory is full")
    assert (back.fault, back.reason) == ("", "")
    assert (failed.fault, failed.reason) == ("out_of_memory", "gave up")


def test_an_exit_is_backoff_only_when_a_restart_is_due() -> None:
    assert fold_instance(started(), exited(restart_at_ns=5)).state == "backoff"
    assert fold_instance(started(), exited(cause="unload")).state == "stopped"


def test_a_failure_keeps_the_last_lines_of_the_exit_before_it() -> None:
    instance = fold_instance(started(), exited(last_lines=["out of memory"]), InstanceFailed(**NAMES, reason="gave up"))

    assert (instance.state, instance.reason, instance.last_lines) == ("failed", "gave up", ("out of memory",))


def test_draining_and_stopping_take_an_instance_out() -> None:
    assert fold_instance(started(), ready(), InstanceDraining(**NAMES, cause="unload")).state == "draining"
    assert fold_instance(started(), ready(), InstanceStopping(**NAMES, cause="unload")).state == "stopping"


def test_models_come_are_rejected_and_go() -> None:
    found = ModelFound(**NAMES, path="/m1.gguf", size_bytes=1, modified_ns=3)
    bad = ModelRejected(node="n1", model="m2", at_ns=1, path="/m2.gguf", reason="not a GGUF file")
    fleet = fold(found, bad)
    assert fleet.models["n1", "m1"].rejected is None
    assert fleet.models["n1", "m2"].rejected == "not a GGUF file"
    assert ("n1", "m1") not in evolve(fleet, ModelRemoved(**NAMES), 3).models


def test_facts_of_other_kinds_change_nothing() -> None:
    fleet = fold(started())
    assert evolve(fleet, object(), 9) == fleet


def test_how_a_process_ended_is_known_when_the_next_one_is_ready_already() -> None:
    instance = fold_instance(started(), ready(), exited(cause="unload"), started(2), ready())

    assert (instance.cause, instance.ended_by, instance.ended_generation) == ("", "unload", 1)

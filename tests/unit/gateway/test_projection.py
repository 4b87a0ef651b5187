"""The herd folds from its facts, in memory and in SQLite alike."""

import sqlite3
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from llamaherd_gateway.projection import Fleet, Instance, evolve
from llamaherd_gateway.store import SCHEMA, load_fleet, project
from llamaherd_shared.bus import Recorded
from llamaherd_shared.events.instance import (
    InstanceDraining,
    InstanceExited,
    InstanceFailed,
    InstanceProgressed,
    InstanceReady,
    InstanceStarted,
    InstanceStopping,
)
from llamaherd_shared.events.model import ModelFound, ModelRejected, ModelRemoved
from llamaherd_shared.events.node import NodeJoined, NodeLeft

NAMES = {"node": "n1", "model": "m1", "at_ns": 1}


def started(generation: int = 1, **names: Any) -> InstanceStarted:
    values = NAMES | {"pid": 7, "process_started_s": 1.0, "host": "127.0.0.1", "port": 5000 + generation} | names
    return InstanceStarted(generation=generation, **values)


def ready(**names: Any) -> InstanceReady:
    return InstanceReady(**(NAMES | names), load_s=1.0, slots=4, context_tokens=512)


def exited(**fields: Any) -> InstanceExited:
    return InstanceExited(**(NAMES | {"cause": "crash"} | fields))


def fold(*events: Any) -> Fleet:
    fleet = Fleet()
    for sequence, event in enumerate(events, 1):
        fleet = evolve(fleet, event, sequence)
    return fleet


def fold_instance(*events: Any) -> Instance:
    return fold(*events).instances["n1", "m1", 0]


def test_a_started_instance_is_loading_and_has_an_address() -> None:
    instance = fold_instance(started(), InstanceProgressed(**NAMES, stage="weights", ratio=0.5))

    assert (instance.state, instance.host, instance.port, instance.generation) == ("loading", "127.0.0.1", 5001, 1)
    assert (instance.stage, instance.ratio, instance.sequence) == ("weights", 0.5, 2)
    assert not instance.was_ready


def test_a_ready_instance_forgets_how_the_spawn_before_it_ended() -> None:
    instance = fold_instance(started(), exited(exit_code=1, last_lines=["bad"], restart_at_ns=5), started(2), ready())

    assert (instance.state, instance.generation, instance.slots) == ("ready", 2, 4)
    assert (instance.last_lines, instance.exit_code) == ((), None)


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


EVENTS = st.one_of(
    st.builds(started, st.integers(1, 3), model=st.sampled_from(["m1", "m2"])),
    st.builds(ready, model=st.sampled_from(["m1", "m2"])),
    st.builds(exited, last_lines=st.just(["x"]), restart_at_ns=st.sampled_from([None, 5])),
    st.builds(InstanceFailed, node=st.just("n1"), model=st.just("m1"), at_ns=st.just(1), reason=st.just("r")),
    st.builds(
        ModelFound,
        node=st.sampled_from(["n1", "n2"]),
        model=st.just("m1"),
        at_ns=st.just(1),
        path=st.just("p"),
        size_bytes=st.just(1),
        modified_ns=st.just(1),
    ),
    st.just(ModelRemoved(**NAMES)),
    st.just(NodeLeft(node="n1", at_ns=1, cause="shutdown")),
    st.just(NodeJoined(node="n1", at_ns=1, version="0", cpus=1, memory_bytes=1, models_dir="", llama_server="")),
)


@settings(max_examples=40)
@given(st.lists(EVENTS, max_size=25), st.integers(1, 5))
def test_the_file_and_the_memory_agree_however_the_log_is_cut_into_batches(history: list[Any], size: int) -> None:
    db = sqlite3.connect(":memory:")
    db.executescript(SCHEMA)
    applied = [
        (Recorded("HERD_EVENTS", sequence, 0, "s", msgspec.json.encode(event)), event)
        for sequence, event in enumerate(history, 1)
    ]
    for at in range(0, len(applied), size):
        project(db, applied[at : at + size])

    assert load_fleet(db) == fold(*history)
    db.close()

"""The fleet as the pages show it, folded from histories."""

from typing import get_args

import msgspec
import pytest

from llamaherd_shared.errors import NotFound
from llamaherd_shared.events import TYPES, Event
from llamaherd_shared.events.access import KeyCreated, KeyLimits, KeyRevoked
from llamaherd_shared.events.alias import AliasEvent
from llamaherd_shared.events.instance import (
    InstanceDraining,
    InstanceExited,
    InstanceFailed,
    InstanceMeasured,
    InstanceProgressed,
    InstanceReady,
    InstanceStarted,
    InstanceStopping,
    InstanceWaiting,
)
from llamaherd_shared.events.model import ModelFound, ModelRejected, ModelRemoved
from llamaherd_shared.events.node import NodeDrained, NodeJoined, NodeLeft, NodeResumed
from llamaherd_shared.events.placement import PlacementDecided
from llamaherd_shared.events.pull import PullEvent
from llamaherd_shared.events.request import RequestFinished, RequestPack
from llamaherd_shared.events.turn import TurnKept
from llamaherd_ui.projection import (
    AccessKey,
    Entity,
    InstanceState,
    ModelFile,
    Node,
    entity_key,
    evolve,
    known_node,
    pick_node,
    select,
)

WHO = {"node": "n1", "model": "cria"}
STARTED = InstanceStarted(
    **WHO, at_ns=10, pid=7, process_started_s=1.0, host="127.0.0.1", port=9000, generation=1, path="/m/cria.gguf"
)
READY = InstanceReady(**WHO, at_ns=20, load_s=0.5, slots=4, context_tokens=2048)
JOINED = NodeJoined(node="n1", at_ns=1, version="0.1.0", cpus=2, memory_bytes=8, models_dir="/m", llama_server="/ls")
FOUND = ModelFound(**WHO, at_ns=2, path="/m/cria.gguf", size_bytes=3, modified_ns=1, chat=True)
KEY = KeyCreated(
    key="k7q2mzxa", at_ns=5, name="laptop", prefix="llh_k7q2mzxa", secret_sha256="0" * 64, models=["cria"],
    limits=KeyLimits(concurrency=4),
)  # fmt: skip


def exited(**fields: object) -> InstanceExited:
    return InstanceExited(**WHO, at_ns=50, **fields)  # type: ignore[arg-type]


def fold(*history: Event) -> dict[str, Entity]:
    entities: dict[str, Entity] = {}
    for event in history:
        key = entity_key(event)
        assert key is not None
        entity = evolve(entities.get(key), event)
        if entity is None:
            entities.pop(key, None)
        else:
            entities[key] = entity
    return entities


def instance(*history: Event) -> InstanceState:
    found = fold(*history)["instance/n1/cria/0"]
    assert isinstance(found, InstanceState)
    return found


MEASURED = InstanceMeasured(**WHO, at_ns=31, uses={"ram": 5_000_000})
HISTORIES: dict[str, tuple[tuple[Event, ...], str]] = {
    "spawned": ((STARTED,), "loading"),
    "loaded": ((STARTED, READY), "ready"),
    "draining": ((STARTED, READY, InstanceDraining(**WHO, at_ns=30, cause="unload")), "draining"),
    "stopping": ((STARTED, READY, InstanceStopping(**WHO, at_ns=40, cause="unload")), "stopping"),
    "unloaded": ((STARTED, READY, exited(exit_code=0, cause="unload")), "stopped"),
    "crashed": ((STARTED, READY, exited(signal="SIGKILL", cause="crash", restart_at_ns=60)), "backoff"),
    "given up": ((STARTED, InstanceFailed(**WHO, at_ns=60, reason="no memory")), "failed"),
    "to be loaded": ((InstanceWaiting(**WHO, at_ns=5, reason="big, which is at work"),), "stopped"),
    "measured": ((STARTED, READY, MEASURED), "ready"),
    "started again": ((STARTED, InstanceFailed(**WHO, at_ns=60, reason="x"), STARTED), "loading"),
}


def test_model_is_shown_with_what_it_can_and_the_file_it_sees_with() -> None:
    seeing = msgspec.structs.replace(FOUND, capabilities=["completion", "vision"], projector="/m/mmproj.gguf")

    file = fold(seeing)["model/n1/cria"]

    assert isinstance(file, ModelFile)
    assert (file.capabilities, file.projector) == (["completion", "vision"], "/m/mmproj.gguf")


@pytest.mark.parametrize("name", HISTORIES)
def test_history_folds_to_state(name: str) -> None:
    history, state = HISTORIES[name]

    assert instance(*history).state == state


def test_what_a_load_waits_for_shows_until_it_begins_and_what_it_uses_until_it_ends() -> None:
    waiting = InstanceWaiting(**WHO, at_ns=5, reason="big, which is at work")

    assert instance(waiting).waits_for == "big, which is at work"
    assert instance(waiting, STARTED).waits_for is None
    assert instance(waiting, InstanceFailed(**WHO, at_ns=6, reason="no memory")).waits_for is None
    assert instance(STARTED, READY, MEASURED).uses == {"ram": 5_000_000}
    assert instance(STARTED, READY, MEASURED, exited(exit_code=0, cause="unload")).uses == {}


def test_progress_shows_only_while_loading() -> None:
    progressed = InstanceProgressed(**WHO, at_ns=15, stage="weights", ratio=0.4, ready_at_ns=40)

    loading = instance(STARTED, progressed)

    assert (loading.stage, loading.ratio, loading.ready_at_ns) == ("weights", 0.4, 40)
    for after in (instance(STARTED, READY, progressed), instance(STARTED, progressed, READY)):
        assert (after.state, after.stage, after.ratio, after.ready_at_ns) == ("ready", None, None, None)


def test_progress_does_not_move_the_time_of_the_state() -> None:
    assert instance(STARTED, InstanceProgressed(**WHO, at_ns=15, stage="weights", ratio=0.4)).since_ns == 10


def test_crash_is_explained_and_keeps_the_last_lines() -> None:
    crashed = instance(STARTED, READY, exited(signal="SIGKILL", cause="crash", last_lines=["boom"], restart_at_ns=60))

    assert crashed.reason == "llama-server was ended by SIGKILL"
    assert crashed.last_lines == ["boom"]
    assert crashed.restart_at_ns == 60
    assert crashed.pid is None


def test_reason_of_a_crash_is_told_as_the_supervisor_tells_it() -> None:
    full = "memory is full: unload another model"
    crashed = instance(
        STARTED, exited(exit_code=1, cause="crash", fault="out_of_memory", reason=full, restart_at_ns=60)
    )

    assert (crashed.cause, crashed.fault, crashed.reason) == ("crash", "out_of_memory", full)


def test_failed_crashed_and_unloaded_are_told_apart() -> None:
    crash = exited(signal="SIGSEGV", cause="crash", fault="internal_error", restart_at_ns=60)
    given_up = InstanceFailed(**WHO, at_ns=60, reason="given up", fault="internal_error")

    told = [
        (found.state, found.cause, found.fault, found.reason is None)
        for found in (
            instance(STARTED, READY, crash, given_up),
            instance(STARTED, READY, crash),
            instance(STARTED, READY, crash, STARTED, READY),
            instance(STARTED, READY, exited(exit_code=0, cause="unload")),
        )
    ]

    assert told == [
        ("failed", "crash", "internal_error", False),
        ("backoff", "crash", "internal_error", False),
        ("ready", "", "", True),
        ("stopped", "unload", "", True),
    ]


def test_exit_code_of_an_adopted_one_is_unknown() -> None:
    assert instance(STARTED, READY, exited(cause="crash")).reason == "llama-server ended (exit code unknown)"


@pytest.mark.parametrize("cause", ["unload", "shutdown", "cancelled", "reload", "evicted for llama"])
def test_end_that_somebody_wanted_needs_no_explanation(cause: str) -> None:
    assert instance(STARTED, READY, exited(exit_code=0, cause=cause)).reason is None


def test_failure_keeps_the_lines_of_the_last_crash() -> None:
    crash = exited(exit_code=1, cause="crash", last_lines=["out of memory"])

    failed = instance(STARTED, crash, InstanceFailed(**WHO, at_ns=60, reason="crashed 5 times in a row"))

    assert failed.last_lines == ["out of memory"]


def test_rejected_file_that_is_repaired_is_served_again() -> None:
    rejected = ModelRejected(**WHO, at_ns=3, path="/m/cria.gguf", reason="truncated")

    broken, repaired = fold(FOUND, rejected)["model/n1/cria"], fold(rejected, FOUND)["model/n1/cria"]

    assert isinstance(broken, ModelFile)
    assert broken.rejected == "truncated"
    assert isinstance(repaired, ModelFile)
    assert repaired.rejected is None


def test_removed_model_is_forgotten() -> None:
    assert fold(FOUND, ModelRemoved(**WHO, at_ns=4)) == {}


def test_node_that_left_stays_with_the_time_it_left() -> None:
    gone = fold(JOINED, NodeLeft(node="n1", at_ns=9, cause="shutdown"))["node/n1"]
    back = fold(JOINED, NodeLeft(node="n1", at_ns=9, cause="shutdown"), JOINED)["node/n1"]

    assert isinstance(gone, Node)
    assert gone.left_ns == 9
    assert isinstance(back, Node)
    assert back.left_ns is None


def test_a_key_stays_with_the_time_it_was_revoked_and_does_not_come_back() -> None:
    made, ended = fold(KEY)["key/k7q2mzxa"], fold(KEY, KeyRevoked(key=KEY.key, at_ns=8), KEY)["key/k7q2mzxa"]

    assert isinstance(made, AccessKey)
    assert (made.name, made.models, made.limits.concurrency, made.revoked_ns) == ("laptop", ["cria"], 4, None)
    assert isinstance(ended, AccessKey)
    assert ended.revoked_ns == 8
    assert fold(KeyRevoked(key="unknown", at_ns=1)) == {}


@pytest.mark.parametrize("event", [READY, InstanceDraining(**WHO, at_ns=1, cause="unload"), exited(cause="unload")])
def test_facts_whose_beginning_is_lost_do_not_raise(event: Event) -> None:
    assert isinstance(fold(event)["instance/n1/cria/0"], InstanceState)


def test_a_node_is_drained_until_it_is_resumed_whatever_its_supervisor_does() -> None:
    drained, resumed = NodeDrained(node="n1", at_ns=2), NodeResumed(node="n1", at_ns=3)
    again = msgspec.structs.replace(JOINED, drained=True)

    states = [fold(JOINED, drained), fold(JOINED, drained, again), fold(JOINED, drained, resumed)]

    assert [select(entities, Node)[0].drained for entities in states] == [True, True, False]


def test_loading_passes_over_a_drained_node() -> None:
    there = msgspec.structs.replace(JOINED, node="n2")
    herd = fold(JOINED, FOUND, there, msgspec.structs.replace(FOUND, node="n2"), NodeDrained(node="n1", at_ns=2))

    assert pick_node(herd, "cria", node=None) == "n2"
    assert known_node(herd, "n1") == "n1"
    with pytest.raises(NotFound, match="there is no node n3; known are: n1, n2"):
        known_node(herd, "n3")


def test_leaving_of_an_unknown_node_changes_nothing() -> None:
    assert fold(NodeLeft(node="n1", at_ns=9, cause="shutdown")) == {}


def test_every_fact_that_is_shown_has_an_entity() -> None:
    elsewhere = (PlacementDecided, RequestFinished, RequestPack, TurnKept, *get_args(AliasEvent), *get_args(PullEvent))
    shown = {name for name, cls in TYPES.items() if cls not in elsewhere}
    made: list[Event] = [event for history, _ in HISTORIES.values() for event in history]
    made += [JOINED, FOUND, NodeLeft(node="n", at_ns=1, cause="x"), ModelRemoved(**WHO, at_ns=1)]
    made += [NodeDrained(node="n", at_ns=1), NodeResumed(node="n", at_ns=1)]
    made += [KEY, KeyRevoked(key=KEY.key, at_ns=8)]
    made += [ModelRejected(**WHO, at_ns=1, path="", reason=""), InstanceProgressed(**WHO, at_ns=1, stage="", ratio=0)]

    assert {str(event.__struct_config__.tag) for event in made} == shown
    assert all(entity_key(event) for event in made)


def test_load_goes_to_a_node_that_has_the_model_and_is_there() -> None:
    other = ModelFound(node="n2", model="cria", at_ns=2, path="/m/cria.gguf", size_bytes=3, modified_ns=1)
    left = NodeLeft(node="n1", at_ns=9, cause="shutdown")

    assert pick_node(fold(JOINED, FOUND, other), "cria", node=None) == "n1"
    assert pick_node(fold(JOINED, FOUND, other, left), "cria", node=None) == "n2"
    assert pick_node(fold(JOINED, FOUND, other), "cria", node="n2") == "n2"


def test_unload_goes_where_the_model_runs() -> None:
    other = InstanceStarted(
        node="n2", model="cria", at_ns=1, pid=1, process_started_s=1, host="h", port=1, generation=1
    )

    assert pick_node(fold(JOINED, FOUND, other), "cria", node=None) == "n2"


def test_unknown_model_is_refused_with_the_known_names() -> None:
    with pytest.raises(NotFound, match=r"no node has a model nope; known are: cria"):
        pick_node(fold(FOUND), "nope", node=None)


def test_node_without_the_model_is_refused_with_the_nodes_that_have_it() -> None:
    with pytest.raises(NotFound, match=r"node n2 has no model cria; it is on n1"):
        pick_node(fold(FOUND), "cria", node="n2")

"""The table of states, walked; histories folded; decisions in every state."""

from functools import reduce

import msgspec
import pytest

from llamaherd_shared.events.instance import (
    InstanceDraining,
    InstanceEvent,
    InstanceExited,
    InstanceFailed,
    InstanceMeasured,
    InstanceProgressed,
    InstanceReady,
    InstanceStarted,
    InstanceStopping,
    InstanceWaiting,
)
from llamaherd_supervisor.faults import Fault
from llamaherd_supervisor.lifecycle import (
    ALIVE,
    NEXT,
    Action,
    Drain,
    Forget,
    Instance,
    Limits,
    Signal,
    Spawn,
    State,
    Vitals,
    Wait,
    Wanted,
    backoff_s,
    ends_promise,
    evolve,
    has_crashes_to_forget,
    is_leaving,
    is_settled,
    may_have_memory,
    mermaid,
    next_action,
    notice,
    observe,
)
from llamaherd_supervisor.observations import (
    AnswersStood,
    DrainBegan,
    Forgotten,
    HealthAnswered,
    HealthMissed,
    LoadProgressed,
    LoadStood,
    MemoryAwaited,
    MemoryMeasured,
    MemoryRefused,
    Observation,
    ProcessExited,
    Reset,
    Signalled,
    SlotsCounted,
    Spawned,
    SpawnFailed,
)

SECOND = 10**9
LIMITS = Limits()
NEW = Instance(node="n", model="m")
YES = Wanted(wanted=True)
NO = Wanted(wanted=False, cause="unload", asked_ns=10**6 * SECOND)
FOR_A = Wanted(wanted=False, cause="evicted for a", asked_ns=10**6 * SECOND)


def started(at_s: float = 0, *, generation: int = 1, restarts: int = 0) -> InstanceStarted:
    return InstanceStarted(
        node="n",
        model="m",
        at_ns=int(at_s * SECOND),
        pid=7,
        process_started_s=1.0,
        host="127.0.0.1",
        port=99,
        generation=generation,
        restarts=restarts,
        path="/m.gguf",
    )


def ready(at_s: float = 1) -> InstanceReady:
    return InstanceReady(node="n", model="m", at_ns=int(at_s * SECOND), load_s=1.0, slots=4, context_tokens=512)


def exited(at_s: float = 2, *, cause: str = "crash", restart_at_s: float | None = 3) -> InstanceExited:
    restart_at_ns = None if restart_at_s is None else int(restart_at_s * SECOND)
    return InstanceExited(
        node="n", model="m", at_ns=int(at_s * SECOND), exit_code=1, cause=cause, restart_at_ns=restart_at_ns
    )


DRAINING = InstanceDraining(node="n", model="m", at_ns=2 * SECOND, cause="unload")
STOPPING = InstanceStopping(node="n", model="m", at_ns=3 * SECOND, cause="unload")
STOPPED = exited(4, cause="unload", restart_at_s=None)
FAILED = InstanceFailed(node="n", model="m", at_ns=5 * SECOND, reason="gave up")
WAITING = InstanceWaiting(node="n", model="m", at_ns=SECOND, reason="a, which is at work")
EVICTED = InstanceDraining(node="n", model="m", at_ns=2 * SECOND, cause="evicted for a")
PROGRESSED = InstanceProgressed(node="n", model="m", at_ns=SECOND // 2, stage="weights", ratio=0.5)


def given(*history: InstanceEvent) -> Instance:
    return reduce(evolve, history, NEW)


HISTORIES: dict[str, tuple[list[InstanceEvent], State]] = {
    "never started": ([], State.STOPPED),
    "spawned": ([started()], State.LOADING),
    "waiting for memory": ([WAITING], State.WAITING),
    "waited for memory": ([WAITING, started()], State.LOADING),
    "waits no more": ([WAITING, STOPPED], State.STOPPED),
    "waited in vain": ([WAITING, FAILED], State.FAILED),
    "waits after a failure": ([FAILED, WAITING], State.WAITING),
    "half loaded": ([started(), PROGRESSED], State.LOADING),
    "healthy": ([started(), ready()], State.READY),
    "unloading": ([started(), ready(), DRAINING], State.DRAINING),
    "told to end": ([started(), ready(), DRAINING, STOPPING], State.STOPPING),
    "unloaded": ([started(), ready(), DRAINING, STOPPING, STOPPED], State.STOPPED),
    "unloaded while loading": ([started(), STOPPING, STOPPED], State.STOPPED),
    "crashed while loading": ([started(), exited()], State.BACKOFF),
    "crashed while ready": ([started(), ready(), exited()], State.BACKOFF),
    "crashed while draining": ([started(), ready(), DRAINING, STOPPED], State.STOPPED),
    "restarted": ([started(), ready(), exited(), started(3, generation=2, restarts=1)], State.LOADING),
    "given up": ([started(), exited(restart_at_s=None), FAILED], State.FAILED),
    "could not be spawned": ([FAILED], State.FAILED),
    "unloaded after failure": ([FAILED, STOPPED], State.STOPPED),
    "loaded after failure": ([FAILED, started(6)], State.LOADING),
    "unloaded during backoff": ([started(), exited(), STOPPED], State.STOPPED),
    "events out of order": ([started(), exited(), ready()], State.BACKOFF),
    "lost its supervisor": ([started(), ready(), exited(cause="supervisor_lost")], State.BACKOFF),
}


@pytest.mark.parametrize(("history", "state"), HISTORIES.values(), ids=HISTORIES)
def test_history_folds_to_state(history: list[InstanceEvent], state: State) -> None:
    assert given(*history).state is state


def test_every_state_has_a_row_and_a_way_in_and_out() -> None:
    entered = {target for row in NEXT.values() for target in row.values()} | {NEW.state}

    assert set(NEXT) == set(State) == entered
    assert all(any(target is not state for target in row.values()) for state, row in NEXT.items())


def test_every_state_with_a_process_is_left_when_it_exits() -> None:
    assert all(NEXT[state][InstanceExited] not in ALIVE for state in ALIVE)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", [started(), WAITING, PROGRESSED, ready(), DRAINING, STOPPING, STOPPED, FAILED])
def test_evolve_never_raises_and_follows_the_table(state: State, event: InstanceEvent) -> None:
    instance = Instance(node="n", model="m", state=state)

    assert evolve(instance, event).state is NEXT[state].get(type(event), state)


def test_diagram_shows_every_state() -> None:
    diagram = mermaid()

    assert all(f"--> {state}" in diagram for state in State)


# What is seen


def seen(
    instance: Instance, what: Observation, *, at_s: float = 2, vitals: Vitals | None = None
) -> list[InstanceEvent]:
    return observe(instance, vitals or Vitals(), what, limits=LIMITS, now_ns=int(at_s * SECOND))


SPAWNED = Spawned(pid=7, process_started_s=1.0, host="127.0.0.1", port=99, path="/m.gguf")
CRASHED = ProcessExited(generation=1, exit_code=1, last_lines=("boom",))


def test_spawn_is_recorded_with_the_next_generation() -> None:
    assert seen(NEW, SPAWNED, at_s=0) == [started()]


def test_health_answer_while_loading_becomes_ready() -> None:
    answer = HealthAnswered(generation=1, slots=4, context_tokens=512)

    assert seen(given(started()), answer, at_s=1) == [ready()]
    assert seen(given(started(), ready()), answer) == []


def test_stale_news_of_an_earlier_process_is_ignored() -> None:
    again = given(started(), exited(), started(3, generation=2, restarts=1))

    for stale in (HealthAnswered(1, 4, 512), LoadProgressed(1, "weights", 0.5), LoadStood(1, 0.0), CRASHED):
        assert seen(again, stale) == []


def test_stale_health_answer_after_exit_is_ignored() -> None:
    assert seen(given(started(), exited()), HealthAnswered(1, 4, 512)) == []


def test_progress_is_recorded_once() -> None:
    news = LoadProgressed(1, "weights", 0.5)

    assert [type(event) for event in seen(given(started()), news)] == [InstanceProgressed]
    assert seen(given(started(), PROGRESSED), news) == []


def test_load_that_goes_on_without_getting_further_is_told_every_ten_seconds() -> None:
    loading = given(started(), PROGRESSED)

    (event,) = seen(loading, LoadStood(1, 0.0), at_s=10.5)

    assert isinstance(event, InstanceProgressed)
    assert (event.stage, event.ratio) == ("weights", 0.5)
    assert seen(evolve(loading, event), LoadStood(1, 0.0), at_s=20) == []
    assert seen(loading, LoadStood(1, 2.0), at_s=100) == []
    assert seen(given(started(), ready()), LoadStood(1, 0.0), at_s=100) == []


def test_first_load_of_a_file_tells_how_long_the_next_one_will_take() -> None:
    loaded = given(started(), PROGRESSED, ready(), exited())
    news = LoadProgressed(1, "weights", 0.5)

    (first,) = seen(given(started()), news, at_s=0.5)
    (second,) = seen(evolve(loaded, started(10)), news, at_s=10.5)
    (other,) = seen(evolve(loaded, msgspec.structs.replace(started(10), path="/other.gguf")), news, at_s=10.5)

    assert isinstance(first, InstanceProgressed)
    assert isinstance(second, InstanceProgressed)
    assert isinstance(other, InstanceProgressed)
    assert (first.ready_at_ns, second.ready_at_ns, other.ready_at_ns) == (None, 11 * SECOND, None)


def test_crash_is_recorded_with_its_last_lines_and_the_time_of_the_restart() -> None:
    (event,) = seen(given(started(), ready()), CRASHED)

    assert isinstance(event, InstanceExited)
    assert (event.cause, event.exit_code, event.last_lines) == ("crash", 1, ["boom"])
    assert event.restart_at_ns == 2.5 * SECOND


def test_exit_after_a_kill_for_silence_is_unhealthy() -> None:
    (event,) = seen(given(started(), ready()), CRASHED, vitals=Vitals(killed="unhealthy"))

    assert isinstance(event, InstanceExited)
    assert event.cause == "unhealthy"


@pytest.mark.parametrize("before", [[DRAINING], [DRAINING, STOPPING]])
def test_exit_that_was_asked_for_has_no_restart_and_no_lines(before: list[InstanceEvent]) -> None:
    (event,) = seen(given(started(), ready(), *before), CRASHED)

    assert isinstance(event, InstanceExited)
    assert (event.cause, event.restart_at_ns, event.last_lines) == ("unload", None, [])


@pytest.mark.parametrize("history", [[started()], [started(), ready()]])
def test_instance_that_ended_while_nobody_watched_restarts_at_once(history: list[InstanceEvent]) -> None:
    (event,) = seen(given(*history), ProcessExited(generation=1, lost=True, last_lines=("bye",)), at_s=9)

    assert isinstance(event, InstanceExited)
    assert (event.cause, event.exit_code, event.signal) == ("supervisor_lost", None, None)
    assert (event.restart_at_ns, event.last_lines) == (9 * SECOND, ["bye"])


@pytest.mark.parametrize("history", [[DRAINING], [DRAINING, STOPPING]])
def test_stop_that_ended_while_nobody_watched_is_a_stop(history: list[InstanceEvent]) -> None:
    (event,) = seen(given(started(), ready(), *history), ProcessExited(generation=1, lost=True))

    assert isinstance(event, InstanceExited)
    assert (event.cause, event.restart_at_ns, event.last_lines) == ("unload", None, [])


def test_spawn_of_an_earlier_supervisor_keeps_its_generation() -> None:
    spawned = Spawned(pid=7, process_started_s=1.0, host="h", port=9, path="/m.gguf", generation=5)

    (event,) = seen(given(started(generation=3), exited()), spawned)

    assert isinstance(event, InstanceStarted)
    assert event.generation == 5


def test_exit_that_nobody_could_wait_for_has_an_unknown_exit_code() -> None:
    """Of an adopted process, which is not our child."""
    limits = Limits(max_crashes=1)
    instance = given(started(), ready())

    exit_, failed = observe(instance, Vitals(), ProcessExited(generation=1), limits=limits, now_ns=9 * SECOND)

    assert isinstance(exit_, InstanceExited)
    assert (exit_.cause, exit_.exit_code, exit_.signal) == ("crash", None, None)
    assert isinstance(failed, InstanceFailed)
    assert "(last: exit code unknown)" in failed.reason


def crashes(count: int, *, apart_s: float = 1, while_ready: bool = True) -> Instance:
    """An instance that crashed this often and was started again after each crash."""
    history: list[InstanceEvent] = []
    for number in range(count):
        at_s = number * apart_s
        history += [started(at_s, generation=number + 1, restarts=number)]
        history += [ready(at_s)] if while_ready else []
        history += [exited(at_s)]
    last = started(count * apart_s, generation=count + 1, restarts=count)
    return given(*history, last, *([ready(count * apart_s)] if while_ready else []))


def test_instance_that_crashed_too_often_is_given_up() -> None:
    (_, failed) = seen(crashes(4), ProcessExited(generation=5, signal="SIGSEGV"), at_s=5)

    assert isinstance(failed, InstanceFailed)
    assert failed.reason == (
        "the llama-server of m ended 5 times within 300 s (last: signal SIGSEGV); load m again to retry"
    )


def test_crashes_long_ago_do_not_count() -> None:
    (event,) = seen(crashes(4, apart_s=400), ProcessExited(generation=5, exit_code=1), at_s=5 * 400)

    assert isinstance(event, InstanceExited)
    assert event.restart_at_ns == (5 * 400 + 0.5) * SECOND


def test_instance_that_cannot_load_is_given_up_sooner() -> None:
    (_, failed) = seen(crashes(2, while_ready=False), ProcessExited(generation=3, exit_code=1))

    assert isinstance(failed, InstanceFailed)
    assert "3 times while loading m (last: exit code 1)" in failed.reason


def test_having_been_ready_forgives_crashes_while_loading() -> None:
    recovered = evolve(crashes(2, while_ready=False), ready(2))

    assert recovered.load_crashes == 0
    assert len(seen(recovered, ProcessExited(generation=3, exit_code=1))) == 1


def test_load_error_that_cannot_heal_is_given_up_at_once() -> None:
    alpaca = Fault("unknown_architecture", "no such architecture: alpaca", final=True)

    (exited, failed) = seen(given(started()), ProcessExited(generation=1, exit_code=1, fault=alpaca))

    assert isinstance(exited, InstanceExited)
    assert isinstance(failed, InstanceFailed)
    assert (exited.cause, exited.fault, exited.reason) == ("crash", "unknown_architecture", alpaca.reason)
    assert exited.restart_at_ns is None
    assert (failed.fault, failed.reason) == ("unknown_architecture", alpaca.reason)


def test_load_error_in_the_lines_of_an_instance_that_was_ready_is_no_load_error() -> None:
    fault = Fault("unfit_file", "old news", final=True)

    events = seen(given(started(), ready()), ProcessExited(generation=1, exit_code=1, fault=fault))

    assert len(events) == 1


def test_what_ended_the_last_try_is_the_reason_of_giving_up() -> None:
    full = Fault("out_of_memory", "memory is full: unload another model")

    (_, failed) = seen(crashes(2, while_ready=False), ProcessExited(generation=3, exit_code=1, fault=full))

    assert isinstance(failed, InstanceFailed)
    assert failed.fault == "out_of_memory"
    assert failed.reason == (
        "llama-server ended 3 times while loading m: memory is full: unload another model; load m again to retry"
    )


def test_instance_that_was_killed_because_it_did_not_answer_is_not_told_as_killed_by_others() -> None:
    gone = ProcessExited(generation=1, signal="SIGKILL", fault=Fault("killed", "it was killed from outside"))

    (hung,) = seen(given(started(), ready()), gone, vitals=Vitals(killed="unhealthy"))
    (killed,) = seen(given(started(), ready()), gone)

    assert isinstance(hung, InstanceExited)
    assert isinstance(killed, InstanceExited)
    assert (hung.cause, hung.fault) == ("unhealthy", "unresponsive")
    assert (killed.cause, killed.fault) == ("crash", "killed")


def test_what_the_lines_of_an_instance_tell_that_ended_while_nobody_watched_is_told() -> None:
    fault = Fault("gpu_failed", "the GPU or its driver failed")

    (event,) = seen(given(started(), ready()), ProcessExited(generation=1, lost=True, fault=fault))

    assert isinstance(event, InstanceExited)
    assert (event.cause, event.fault, event.reason) == ("supervisor_lost", "gpu_failed", fault.reason)


def test_end_that_was_asked_for_has_no_fault() -> None:
    gone = ProcessExited(generation=1, exit_code=1, fault=Fault("internal_error", "a bug"))

    (event,) = seen(given(started(), ready(), DRAINING, STOPPING), gone)

    assert isinstance(event, InstanceExited)
    assert (event.cause, event.fault, event.reason) == ("unload", "", "")


def test_program_that_cannot_be_started_is_a_failure_with_its_reason() -> None:
    (failed,) = seen(NEW, SpawnFailed("cannot start llama-server: No such file"))

    assert isinstance(failed, InstanceFailed)
    assert failed.reason == "cannot start llama-server: No such file"


def test_start_by_hand_forgives_earlier_crashes() -> None:
    failed = evolve(crashes(4), FAILED)

    (event,) = seen(evolve(evolve(failed, exited(5)), FAILED), SPAWNED, at_s=6)

    assert isinstance(event, InstanceStarted)
    assert event.restarts == 0
    assert evolve(failed, event).crashed_ns == ()


@pytest.mark.parametrize("history", [[exited()], [exited(), FAILED]], ids=["in backoff", "failed"])
def test_reset_forgets_the_crashes_and_starts_at_once_what_is_wanted(history: list[InstanceEvent]) -> None:
    instance = given(started(), ready(), exited(), started(3, generation=2, restarts=1), *history)

    (event,) = seen(instance, Reset(), at_s=9)
    after = evolve(instance, event)

    assert isinstance(event, InstanceExited)
    assert (event.cause, event.restart_at_ns) == ("reset", None)
    assert (after.state, after.crashed_ns, after.load_crashes) == (State.STOPPED, (), 0)
    assert next_action(after, Vitals(), YES, limits=LIMITS, now_ns=9 * SECOND) == Spawn()
    assert next_action(after, Vitals(), NO, limits=LIMITS, now_ns=9 * SECOND) is None


@pytest.mark.parametrize("state", sorted(set(State) - {State.BACKOFF, State.FAILED}))
def test_reset_leaves_alone_what_has_not_crashed(state: State) -> None:
    instance = Instance(node="n", model="m", state=state)

    assert seen(instance, Reset()) == []
    assert not has_crashes_to_forget(instance)


def test_what_a_process_was_told_is_told_and_what_it_has_is_kept() -> None:
    spawned = msgspec.structs.replace(SPAWNED, options={"slots": 2})

    (event,) = seen(NEW, spawned)

    assert isinstance(event, InstanceStarted)
    assert event.options == {"slots": 2}
    loaded = evolve(evolve(NEW, event), ready())
    assert (loaded.slots, loaded.context_tokens) == (4, 512)
    again = evolve(evolve(loaded, exited()), started(5, generation=2))
    assert (again.slots, again.context_tokens) == (0, 0)


def test_what_is_waited_for_is_told_when_it_changes() -> None:
    (event,) = seen(NEW, MemoryAwaited("a, which is at work"), at_s=1)

    assert event == WAITING
    assert seen(given(WAITING), MemoryAwaited("a, which is at work")) == []
    assert len(seen(given(WAITING), MemoryAwaited("a to be gone"))) == 1
    assert seen(given(started()), MemoryAwaited("a to be gone")) == []


def test_load_that_will_never_have_its_memory_has_failed_with_the_arithmetic() -> None:
    (failed,) = seen(given(WAITING), MemoryRefused("m needs 9 GiB of RAM, and 8 GiB are free"))

    assert isinstance(failed, InstanceFailed)
    assert (failed.fault, failed.reason) == ("no_memory", "m needs 9 GiB of RAM, and 8 GiB are free")


def test_memory_of_a_ready_process_is_told_and_that_of_an_earlier_one_is_not() -> None:
    measured = MemoryMeasured(generation=1, uses={"ram": 5}, estimated={"ram": 6}, needs={"ram": 5}, plan="p")

    (event,) = seen(given(started(), ready()), measured)

    assert isinstance(event, InstanceMeasured)
    assert (event.uses, event.estimated, event.needs, event.plan) == ({"ram": 5}, {"ram": 6}, {"ram": 5}, "p")
    assert seen(given(started(), ready()), msgspec.structs.replace(measured, generation=2)) == []


# Whose the memory is


@pytest.mark.parametrize(
    ("history", "wanted", "leaving"),
    [
        ([started()], YES, False),
        ([started()], NO, True),
        ([started(), ready()], YES, False),
        ([started(), ready()], NO, True),
        ([started(), ready(), DRAINING], YES, True),
        ([started(), ready(), DRAINING, STOPPING], NO, True),
        ([started(), exited()], YES, False),
    ],
)
def test_instance_leaves_from_the_moment_it_is_not_wanted(
    history: list[InstanceEvent], wanted: Wanted, leaving: bool
) -> None:
    assert is_leaving(given(*history), wanted) is leaving


def test_promise_of_memory_outlives_a_crash_and_ends_with_an_exit_for_good() -> None:
    assert [ends_promise(event) for event in (started(), ready(), exited(), DRAINING, STOPPING)] == [False] * 5
    assert [ends_promise(event) for event in (STOPPED, FAILED)] == [True, True]
    assert may_have_memory(given(started()), NO)
    assert may_have_memory(given(), YES)
    assert not may_have_memory(given(WAITING), NO)


# How long to wait


def test_backoff_doubles_up_to_its_cap() -> None:
    delays = [backoff_s(crashes, limits=LIMITS, jitter=0) for crashes in range(1, 10)]

    assert delays == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]
    assert backoff_s(10_000, limits=LIMITS, jitter=0) == 60


def test_jitter_stretches_by_up_to_a_tenth() -> None:
    assert backoff_s(1, limits=LIMITS, jitter=1.0) == pytest.approx(0.55)
    assert backoff_s(100, limits=LIMITS, jitter=0.5) == pytest.approx(63)


# What to do

OTHERWISE = Wanted(wanted=True, cause="reload", replaces=1)
"""Not the first spawn, but another one."""
BUSY, IDLE = Vitals(busy_slots=1), Vitals(busy_slots=0)
SILENT, KILLED = Vitals(missed=3), Vitals(missed=3, killed="unhealthy")
TODO: dict[str, tuple[list[InstanceEvent], Vitals, Wanted, float, Action | None]] = {
    "idle and unwanted": ([], Vitals(), NO, 0, None),
    "wanted": ([], Vitals(), YES, 0, Spawn()),
    "loading": ([started()], Vitals(), YES, 1, None),
    "loading for long": ([started()], Vitals(still_s=299), YES, 10**6, None),
    "loading, and nothing moves": ([started()], Vitals(still_s=300), YES, 301, Signal("unhealthy", kill=True)),
    "loading, nothing moved, and killed": ([started()], Vitals(still_s=302, killed="unhealthy"), YES, 302, None),
    "unwanted while loading": ([started()], Vitals(), NO, 1, Signal("unload")),
    "ready": ([started(), ready()], Vitals(missed=2), YES, 2, None),
    "silent": ([started(), ready()], SILENT, YES, 2, Signal("unhealthy", kill=True)),
    "its answers stand still": ([started(), ready()], Vitals(stuck_s=599), YES, 601, None),
    "its answers stand still for long": (
        [started(), ready()],
        Vitals(stuck_s=600),
        YES,
        602,
        Signal("unhealthy", kill=True),
    ),
    "silent and killed": ([started(), ready()], KILLED, YES, 2, None),
    "unwanted while ready": ([started(), ready()], Vitals(), NO, 2, Drain("unload")),
    "draining, nothing known": ([started(), ready(), DRAINING], Vitals(), NO, 2, Wait(30.0)),
    "draining, busy": ([started(), ready(), DRAINING], BUSY, NO, 12, Wait(20.0)),
    "draining, busy too long": ([started(), ready(), DRAINING], BUSY, NO, 32, Signal("unload")),
    "draining, idle at once": ([started(), ready(), DRAINING], IDLE, NO, 2, Wait(0.3)),
    "draining, idle": ([started(), ready(), DRAINING], IDLE, NO, 2.4, Signal("unload")),
    "draining goes on when wanted again": ([started(), ready(), DRAINING], IDLE, YES, 2.4, Signal("unload")),
    "waiting for memory": ([WAITING], Vitals(), YES, 2, Spawn()),
    "unwanted while waiting for memory": ([WAITING], Vitals(), NO, 2, Forget("unload")),
    "evicted, busy": ([started(), ready(), EVICTED], BUSY, FOR_A, 1002, Wait(2600.0)),
    "evicted, busy, and wanted again": ([started(), ready(), EVICTED], BUSY, YES, 1002, Wait(2600.0)),
    "evicted, busy, and unloaded": ([started(), ready(), EVICTED], BUSY, NO, 12, Wait(20.0)),
    "evicted, busy, and unloaded for long": ([started(), ready(), EVICTED], BUSY, NO, 32, Signal("unload")),
    "evicted, busy for ever": ([started(), ready(), EVICTED], BUSY, FOR_A, 3602, Signal("evicted for a")),
    "evicted, busy and stuck": (
        [started(), ready(), EVICTED],
        Vitals(busy_slots=1, stalled=True),
        FOR_A,
        12,
        Wait(20.0),
    ),
    "evicted, idle": ([started(), ready(), EVICTED], IDLE, FOR_A, 2.4, Signal("evicted for a")),
    "evicted, nothing known": ([started(), ready(), EVICTED], Vitals(), FOR_A, 32, Signal("evicted for a")),
    "evicted, busy and silent": ([started(), ready(), EVICTED], Vitals(busy_slots=1, missed=3), FOR_A, 12, Wait(20.0)),
    "evicted, adopted just now": (
        [started(), ready(), EVICTED],
        Vitals(watched_ns=31 * SECOND),
        FOR_A,
        32,
        Wait(29.0),
    ),
    "stopping": ([started(), ready(), DRAINING, STOPPING], IDLE, NO, 4, Wait(9.0)),
    "stopping too long": ([started(), ready(), DRAINING, STOPPING], IDLE, NO, 13, Signal("unload", kill=True)),
    "to be started again while ready": ([started(), ready()], Vitals(), OTHERWISE, 2, Drain("reload")),
    "to be started again while loading": ([started()], Vitals(), OTHERWISE, 1, Signal("reload")),
    "started again": ([started(), ready(), DRAINING, STOPPED], IDLE, OTHERWISE, 4, Spawn()),
    "started again already": ([started(generation=2), ready()], Vitals(), OTHERWISE, 2, None),
    "wanted again after the stop": ([started(), ready(), DRAINING, STOPPING, STOPPED], IDLE, YES, 4, Spawn()),
    "backoff": ([started(), exited()], KILLED, YES, 2, Wait(1.0)),
    "backoff is over": ([started(), exited()], KILLED, YES, 3, Spawn()),
    "unwanted during backoff": ([started(), exited()], Vitals(), NO, 2, Forget("unload")),
    "failed": ([FAILED], Vitals(), YES, 100, None),
    "failed and loaded by hand": ([FAILED], Vitals(), Wanted(wanted=True, asked_ns=6 * SECOND), 6, Spawn()),
    "failed and unloaded": ([FAILED], Vitals(), NO, 100, Forget("unload")),
    "failed and shut down": ([FAILED], Vitals(), Wanted(wanted=False, cause="shutdown", asked_ns=10**18), 100, None),
}


@pytest.mark.parametrize(("history", "vitals", "wanted", "now_s", "action"), TODO.values(), ids=TODO)
def test_next_action(
    history: list[InstanceEvent], vitals: Vitals, wanted: Wanted, now_s: float, action: Action | None
) -> None:
    found = next_action(given(*history), vitals, wanted, limits=LIMITS, now_ns=int(now_s * SECOND))

    if isinstance(action, Wait):
        assert isinstance(found, Wait)
        assert found.seconds == pytest.approx(action.seconds)
    else:
        assert found == action


def test_every_action_is_seen_as_what_it_did() -> None:
    """The shell reports what it did; the fact follows from the report."""
    assert seen(given(started(), ready()), DrainBegan("unload")) == [DRAINING]
    assert seen(given(started(), ready(), DRAINING), Signalled("unload", kill=False), at_s=3) == [STOPPING]
    assert seen(given(started(), ready(), DRAINING, STOPPING), Signalled("unload", kill=True)) == []
    (forgotten,) = seen(given(started(), exited()), Forgotten("unload"))
    assert isinstance(forgotten, InstanceExited)
    assert (forgotten.cause, forgotten.restart_at_ns) == ("unload", None)


def test_vitals_follow_what_is_seen_of_the_running_process() -> None:
    instance = given(started(), ready())
    vitals = Vitals()
    for what in (HealthMissed(1), HealthMissed(1), SlotsCounted(1, 2), HealthMissed(99)):
        vitals = notice(instance, vitals, what)

    assert vitals == Vitals(missed=2, busy_slots=2)
    assert notice(instance, vitals, HealthAnswered(1, 4, 512)).missed == 0
    assert notice(instance, vitals, LoadStood(1, 4.0)).still_s == 4
    assert notice(instance, vitals, Signalled("unhealthy", kill=True)).killed == "unhealthy"
    assert notice(instance, vitals, SPAWNED) == Vitals()


def test_settled_means_nothing_runs_and_nothing_will() -> None:
    assert is_settled(NEW, NO)
    assert is_settled(given(FAILED), NO)
    assert not is_settled(NEW, YES)
    assert not is_settled(given(started(), exited()), NO)
    assert not is_settled(given(started()), NO)


def test_server_whose_answers_stood_still_is_said_to_be_stuck() -> None:
    gone = ProcessExited(generation=1, signal="SIGKILL")
    (event,) = seen(given(started(), ready()), gone, vitals=Vitals(stuck_s=600, killed="unhealthy"))

    assert isinstance(event, InstanceExited)
    assert (event.cause, event.fault) == ("unhealthy", "stuck")
    assert event.reason == "nothing of its answers moved for 600 s, and it was ended"


def test_answers_that_go_on_again_are_noticed() -> None:
    instance = given(started(), ready())

    stuck = notice(instance, Vitals(), AnswersStood(1, 30))

    assert stuck.stuck_s == 30
    assert notice(instance, stuck, AnswersStood(1, 0)).stuck_s == 0
    assert notice(instance, stuck, AnswersStood(2, 0)) == stuck

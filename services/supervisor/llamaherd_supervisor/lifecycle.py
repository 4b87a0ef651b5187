"""Life of one instance: every state, legal transition and next step is in this file.

The shell feeds `observe`, appends the events it returns, folds them with `evolve` and performs `next_action`.
Nothing else may compare or assign a `State`.
"""

import enum
from collections.abc import Mapping
from typing import Final

import msgspec

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
from llamaherd_shared.model_options import LoadOptions
from llamaherd_supervisor.faults import Fault
from llamaherd_supervisor.load_time import Mark, estimate_left_s
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


class State(enum.StrEnum):
    STOPPED = "stopped"
    """No process, and none wanted."""
    WAITING = "waiting"
    """Wanted, and its memory is not free yet."""
    LOADING = "loading"
    """Process alive; `GET /health` has not answered 200 since the spawn."""
    READY = "ready"
    """Accepts work."""
    DRAINING = "draining"
    """No new work; what is in flight finishes."""
    STOPPING = "stopping"
    """SIGTERM was sent; SIGKILL follows after `Limits.stop_timeout_s`."""
    BACKOFF = "backoff"
    """Process gone unasked; it restarts at a known time."""
    FAILED = "failed"
    """Given up: a command is needed to try again."""


NEXT: Final[Mapping[State, Mapping[type[InstanceEvent], State]]] = {
    State.STOPPED: {
        InstanceStarted: State.LOADING,
        InstanceWaiting: State.WAITING,
        InstanceFailed: State.FAILED,
    },
    # An exit out of a state without a process says that no further start will be tried, as somebody asked.
    State.WAITING: {
        InstanceWaiting: State.WAITING,
        InstanceStarted: State.LOADING,
        InstanceExited: State.STOPPED,
        InstanceFailed: State.FAILED,
    },
    State.LOADING: {
        InstanceProgressed: State.LOADING,
        InstanceReady: State.READY,
        InstanceStopping: State.STOPPING,
        InstanceExited: State.BACKOFF,
    },
    State.READY: {
        InstanceMeasured: State.READY,
        InstanceDraining: State.DRAINING,
        InstanceExited: State.BACKOFF,
    },
    State.DRAINING: {InstanceStopping: State.STOPPING, InstanceExited: State.STOPPED},
    State.STOPPING: {InstanceExited: State.STOPPED},
    State.BACKOFF: {
        InstanceStarted: State.LOADING,
        InstanceWaiting: State.WAITING,
        InstanceExited: State.STOPPED,
        InstanceFailed: State.FAILED,
    },
    State.FAILED: {
        InstanceStarted: State.LOADING,
        InstanceWaiting: State.WAITING,
        InstanceExited: State.STOPPED,
        InstanceFailed: State.FAILED,
    },
}

CRASHES: Final = frozenset({"crash", "unhealthy"})
"""Causes of `InstanceExited` that count towards giving up."""
ALIVE: Final = frozenset({State.LOADING, State.READY, State.DRAINING, State.STOPPING})
"""States with a process."""
DRAINED: Final = "drained"
"""Cause of a stop for the node's maintenance."""
EVICTED: Final = "evicted for "
"""Before a model's name, the cause of a stop that makes room for that model."""
_REMEMBERED_CRASHES: Final = 32
_PROGRESS_REPEAT_S: Final = 10.0
"""A load that goes on is told so often, also when it is no further: whoever waits for it has patience of his own."""
_DRAIN_GRACE_S: Final = 0.3
"""A gateway may have picked this instance just before it read `InstanceDraining`: wait for that request to arrive."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How patient supervision is. Defaults and their reasons are in `settings.py`."""

    stop_timeout_s: float = 10.0
    drain_timeout_s: float = 30.0
    evict_timeout_s: float = 3600.0
    answer_stall_s: float = 120.0
    answer_kill_s: float = 600.0
    load_stall_s: float = 300.0
    backoff_base_s: float = 0.5
    backoff_max_s: float = 60.0
    max_crashes: int = 5
    max_load_crashes: int = 3
    crash_window_s: float = 300.0
    max_missed: int = 3


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """One instance as its history tells."""

    node: str
    model: str
    index: int = 0
    state: State = State.STOPPED
    since_ns: int = 0
    """When `state` was entered, Unix nanoseconds."""
    generation: int = 0
    """Spawns so far."""
    pid: int | None = None
    process_started_s: float = 0.0
    host: str = ""
    port: int = 0
    path: str = ""
    slots: int = 0
    context_tokens: int = 0
    """Of each slot; both as the running process told, 0 before."""
    crashed_ns: tuple[int, ...] = ()
    """When it crashed, oldest first, since the last exit or start that somebody asked for."""
    load_crashes: int = 0
    """Crashes while loading since it was last ready."""
    restart_at_ns: int | None = None
    cause: str = ""
    """Who wanted the stop, in `draining` and `stopping`."""
    awaits: str = ""
    """What it waits for, in `waiting`."""
    stage: str = ""
    ratio: float = 0.0
    progressed_ns: int = 0
    """When its load was last told to go on."""
    marks: tuple[Mark, ...] = ()
    """Where each stage of its load has begun."""
    last_marks: tuple[Mark, ...] = ()
    """The same of the last load of this file that ended well, and its end; empty before it."""

    @property
    def name(self) -> str:
        """`<model>/<index>`, as logs and remarks call it."""
        return f"{self.model}/{self.index}"


class Vitals(msgspec.Struct, frozen=True, kw_only=True):
    """What is known about the running process and is not worth a fact."""

    missed: int = 0
    """Health probes in a row without an answer, since it was ready."""
    busy_slots: int | None = None
    """Slots at work when `GET /slots` was last asked while draining; `None` before."""
    stalled: bool = False
    """Of these nothing has moved for long."""
    killed: str | None = None
    """Why SIGKILL was sent; `None` when it was not."""
    still_s: float = 0.0
    """For how long nothing of its load has moved."""
    stuck_s: float = 0.0
    """For how long nothing of its answers has moved, since it was ready."""
    watched_ns: int = 0
    """Since when, if an earlier supervisor spawned it: nothing of the above is known from before."""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the instance should run, as last asked."""

    wanted: bool
    cause: str = "unload"
    """Why it should not run, or not go on running as it does."""
    asked_ns: int = 0
    """When it was asked for; a `failed` instance is only touched for something newer than its failure."""
    options: LoadOptions = LoadOptions()
    """What the load asked for, for the next spawn."""
    replaces: int = 0
    """Generation of a process that is to be started again; 0: of none."""
    may_evict: bool = True
    """Whether other models are unloaded for it, where memory is short."""


class Spawn(msgspec.Struct, frozen=True):
    """Start the process now."""


class Drain(msgspec.Struct, frozen=True):
    """Say that no new work is wanted, then count busy slots."""

    cause: str


class Signal(msgspec.Struct, frozen=True):
    """Send SIGTERM, or SIGKILL, to the process and its children."""

    cause: str
    kill: bool = False


class Forget(msgspec.Struct, frozen=True):
    """Give up restarting without a word of complaint."""

    cause: str


class Wait(msgspec.Struct, frozen=True):
    """Look again after this long, or at the next observation."""

    seconds: float


Action = Spawn | Drain | Signal | Forget | Wait


def observe(
    instance: Instance, vitals: Vitals, seen: Observation, *, limits: Limits, now_ns: int, jitter: float = 0.0
) -> list[InstanceEvent]:
    """Turn what the shell saw into facts worth recording; stale or repeated news yields none.

    `jitter` (0 to 1) stretches a restart delay by up to a tenth, so that instances felled together do not
    come back together.
    """
    if _generation_of(seen) not in {None, instance.generation}:
        return []
    match seen:
        case ProcessExited():
            events = _observe_exit(instance, vitals, seen, limits=limits, now_ns=now_ns, jitter=jitter)
        case _:
            event = _observe_one(instance, seen, limits=limits, now_ns=now_ns)
            events = [] if event is None else [event]
    return events if events and type(events[0]) in NEXT[instance.state] else []


def _generation_of(seen: Observation) -> int | None:
    match seen:
        case (
            LoadProgressed()
            | LoadStood()
            | HealthAnswered()
            | HealthMissed()
            | AnswersStood()
            | SlotsCounted()
            | MemoryMeasured()
            | ProcessExited()
        ):
            return seen.generation
        case _:
            return None


def _observe_one(instance: Instance, seen: Observation, *, limits: Limits, now_ns: int) -> InstanceEvent | None:
    node, model, index = instance.node, instance.model, instance.index
    match seen:
        case Spawned():
            crashed = len(recent_crashes(instance, limits=limits, now_ns=now_ns))
            return InstanceStarted(
                node=node,
                model=model,
                index=index,
                at_ns=now_ns,
                pid=seen.pid,
                process_started_s=seen.process_started_s,
                host=seen.host,
                port=seen.port,
                generation=seen.generation or instance.generation + 1,
                # A start after `failed` or `stopped` was asked for: what was before is forgiven.
                restarts=crashed if instance.state is State.BACKOFF else 0,
                path=seen.path,
                options=dict(seen.options),
                router_generation=seen.router_generation,
            )
        case SpawnFailed(reason=reason):
            return InstanceFailed(
                node=node, model=model, index=index, at_ns=now_ns, reason=reason, fault="cannot_start"
            )
        case MemoryAwaited(reason=reason) if instance.state is not State.WAITING or reason != instance.awaits:
            return InstanceWaiting(node=node, model=model, index=index, at_ns=now_ns, reason=reason)
        case MemoryRefused(reason=reason):
            return InstanceFailed(node=node, model=model, index=index, at_ns=now_ns, reason=reason, fault="no_memory")
        case MemoryMeasured():
            return InstanceMeasured(
                node=node,
                model=model,
                index=index,
                at_ns=now_ns,
                uses=dict(seen.uses),
                estimated=dict(seen.estimated),
                needs=dict(seen.needs),
                plan=seen.plan,
            )
        case LoadProgressed(stage=stage, ratio=ratio) if (stage, ratio) != (instance.stage, instance.ratio):
            return _progressed(instance, stage, ratio, now_ns=now_ns)
        case LoadStood(for_s=0) if now_ns - instance.progressed_ns >= _PROGRESS_REPEAT_S * 1e9:
            return _progressed(instance, instance.stage, instance.ratio, now_ns=now_ns)
        case HealthAnswered(slots=slots, context_tokens=context_tokens):
            return InstanceReady(
                node=node,
                model=model,
                index=index,
                at_ns=now_ns,
                load_s=max(0.0, (now_ns - instance.since_ns) / 1e9),
                slots=slots,
                context_tokens=context_tokens,
            )
        case DrainBegan(cause=cause):
            return InstanceDraining(node=node, model=model, index=index, at_ns=now_ns, cause=cause)
        case Signalled(cause=cause, kill=False):
            return InstanceStopping(node=node, model=model, index=index, at_ns=now_ns, cause=cause)
        case Forgotten(cause=cause):
            return InstanceExited(node=node, model=model, index=index, at_ns=now_ns, cause=cause)
        case Reset() if has_crashes_to_forget(instance):
            return InstanceExited(node=node, model=model, index=index, at_ns=now_ns, cause="reset")
        case _:
            return None


def _progressed(instance: Instance, stage: str, ratio: float, *, now_ns: int) -> InstanceProgressed:
    left_s = estimate_left_s(instance.last_marks, ratio, passed_s=max(0.0, (now_ns - instance.since_ns) / 1e9))
    return InstanceProgressed(
        node=instance.node,
        model=instance.model,
        index=instance.index,
        at_ns=now_ns,
        stage=stage,
        ratio=ratio,
        ready_at_ns=None if left_s is None else now_ns + int(left_s * 1e9),
    )


def _observe_exit(
    instance: Instance, vitals: Vitals, seen: ProcessExited, *, limits: Limits, now_ns: int, jitter: float
) -> list[InstanceEvent]:
    """An exit that was asked for is one fact; any other also decides on the restart, or on giving up."""
    node, model, index = instance.node, instance.model, instance.index
    asked = instance.state in {State.DRAINING, State.STOPPING}
    fault = None if asked else _killed_by_us(instance, vitals, limits) or seen.fault
    told = {"fault": fault.kind, "reason": fault.reason} if fault is not None else {}
    if asked or seen.lost:
        exited = InstanceExited(
            node=node,
            model=model,
            index=index,
            at_ns=now_ns,
            exit_code=seen.exit_code,
            signal=seen.signal,
            cause=instance.cause if asked else "supervisor_lost",
            last_lines=[] if asked else list(seen.last_lines),
            restart_at_ns=None if asked else now_ns,
            **told,
        )
        return [exited]
    crashes = len(recent_crashes(instance, limits=limits, now_ns=now_ns)) + 1
    reason = _give_up_reason(instance, seen, fault, crashes=crashes, limits=limits)
    delay_s = backoff_s(crashes, limits=limits, jitter=jitter)
    events: list[InstanceEvent] = [
        InstanceExited(
            node=node,
            model=model,
            index=index,
            at_ns=now_ns,
            exit_code=seen.exit_code,
            signal=seen.signal,
            cause=vitals.killed or "crash",
            last_lines=list(seen.last_lines),
            restart_at_ns=None if reason else now_ns + int(delay_s * 1e9),
            **told,
        )
    ]
    if reason:
        events.append(
            InstanceFailed(
                node=node,
                model=model,
                index=index,
                at_ns=now_ns,
                reason=reason,
                last_lines=list(seen.last_lines),
                fault=fault.kind if fault is not None else "",
            )
        )
    return events


def _killed_by_us(instance: Instance, vitals: Vitals, limits: Limits) -> Fault | None:
    if vitals.killed != "unhealthy":
        return None
    if instance.state is State.LOADING:
        return Fault("stuck", f"nothing of its load moved for {limits.load_stall_s:g} s, and it was ended")
    if _is_stuck(vitals, limits):
        return Fault("stuck", f"nothing of its answers moved for {limits.answer_kill_s:g} s, and it was ended")
    return Fault("unresponsive", f"it no longer answered {limits.max_missed} health probes, and was ended")


def _give_up_reason(
    instance: Instance, seen: ProcessExited, fault: Fault | None, *, crashes: int, limits: Limits
) -> str | None:
    """Why no restart is tried any more, as one sentence; `None` to try again."""
    why = f" (last: {describe_ending(seen.exit_code, seen.signal)})" if fault is None else f": {fault.reason}"
    retry = f"load {instance.model} again to retry"
    if instance.state is State.LOADING:
        if fault is not None and fault.final:
            return fault.reason
        if instance.load_crashes + 1 >= limits.max_load_crashes:
            times = instance.load_crashes + 1
            return f"llama-server ended {times} times while loading {instance.model}{why}; {retry}"
    if crashes >= limits.max_crashes:
        window = f"{limits.crash_window_s:g} s"
        return f"the llama-server of {instance.model} ended {crashes} times within {window}{why}; {retry}"
    return None


def describe_ending(exit_code: int | None, signal: str | None) -> str:
    """How a process ended, in a few words."""
    if signal is not None:
        return f"signal {signal}"
    return "exit code unknown" if exit_code is None else f"exit code {exit_code}"


def recent_crashes(instance: Instance, *, limits: Limits, now_ns: int) -> tuple[int, ...]:
    """Crashes within the window that counts."""
    return tuple(at_ns for at_ns in instance.crashed_ns if now_ns - at_ns <= limits.crash_window_s * 1e9)


def backoff_s(crashes: int, *, limits: Limits, jitter: float) -> float:
    """Delay before the restart that follows the n-th crash in the window: doubles, capped, up to 10 % longer."""
    plain = limits.backoff_base_s * 2.0 ** min(crashes - 1, 30)
    return min(plain, limits.backoff_max_s) * (1.0 + 0.1 * jitter)


def notice(instance: Instance, vitals: Vitals, seen: Observation) -> Vitals:
    """Fold in what is not a fact; `instance` as it is after the facts of the same observation."""
    if _generation_of(seen) not in {None, instance.generation}:
        return vitals
    match seen:
        case Spawned():
            return Vitals()
        case HealthAnswered():
            return msgspec.structs.replace(vitals, missed=0)
        case HealthMissed():
            return msgspec.structs.replace(vitals, missed=vitals.missed + 1)
        case LoadStood(for_s=for_s):
            return msgspec.structs.replace(vitals, still_s=for_s)
        case AnswersStood(for_s=for_s):
            return msgspec.structs.replace(vitals, stuck_s=for_s)
        case SlotsCounted(busy=busy, stalled=stalled):
            return msgspec.structs.replace(vitals, busy_slots=busy, stalled=stalled)
        case Signalled(cause=cause, kill=True):
            return msgspec.structs.replace(vitals, killed=cause)
        case _:
            return vitals


def evolve(instance: Instance, event: InstanceEvent) -> Instance:
    """Fold one recorded fact in. Never raises: history already happened."""
    state = NEXT[instance.state].get(type(event), instance.state)
    moved = state is not instance.state or isinstance(event, InstanceFailed)
    changes: dict[str, object] = {"state": state, "since_ns": event.at_ns if moved else instance.since_ns}
    match event:
        case InstanceStarted():
            changes |= {
                "generation": event.generation,
                "pid": event.pid,
                "process_started_s": event.process_started_s,
                "host": event.host,
                "port": event.port,
                "path": event.path,
                "slots": 0,
                "context_tokens": 0,
                "crashed_ns": instance.crashed_ns if event.restarts else (),
                "load_crashes": instance.load_crashes if event.restarts else 0,
                "restart_at_ns": None,
                "cause": "",
                "stage": "spawn",
                "ratio": 0.0,
                "progressed_ns": event.at_ns,
                "marks": (),
                "last_marks": instance.last_marks if event.path == instance.path else (),
            }
        case InstanceWaiting():
            changes |= {"awaits": event.reason, "restart_at_ns": None}
        case InstanceProgressed():
            changes |= {"stage": event.stage, "ratio": event.ratio, "progressed_ns": event.at_ns}
            if event.stage != instance.stage:
                changes["marks"] = (*instance.marks, (event.ratio, (event.at_ns - instance.since_ns) / 1e9))
        case InstanceReady():
            changes["last_marks"] = (*instance.marks, (1.0, event.load_s))
            changes |= {"load_crashes": 0, "stage": "", "ratio": 1.0}
            changes |= {"slots": event.slots, "context_tokens": event.context_tokens}
        case InstanceDraining() | InstanceStopping():
            changes |= {"cause": event.cause}
        case InstanceExited():
            changes |= {"pid": None, "restart_at_ns": event.restart_at_ns, "stage": "", "ratio": 0.0}
            if event.cause in CRASHES:
                changes["crashed_ns"] = (*instance.crashed_ns, event.at_ns)[-_REMEMBERED_CRASHES:]
                changes["load_crashes"] = instance.load_crashes + (instance.state is State.LOADING)
            elif event.cause != "supervisor_lost":
                changes |= {"crashed_ns": (), "load_crashes": 0}
        case InstanceFailed():
            changes |= {"pid": None, "restart_at_ns": None}
    return msgspec.structs.replace(instance, **changes)


def next_action(instance: Instance, vitals: Vitals, wanted: Wanted, *, limits: Limits, now_ns: int) -> Action | None:
    """Decide what the shell does now; `None` means wait for the next observation."""
    for_s = (now_ns - instance.since_ns) / 1e9
    match instance.state:
        case State.STOPPED:
            return Spawn() if wanted.wanted else None
        case State.WAITING:
            return Spawn() if wanted.wanted else Forget(wanted.cause)
        case State.BACKOFF:
            if not wanted.wanted:
                return Forget(wanted.cause)
            left_s = ((instance.restart_at_ns or 0) - now_ns) / 1e9
            return Spawn() if left_s <= 0 else Wait(left_s)
        case State.FAILED:
            # A shutdown leaves the failure in sight: it is still true after the next start.
            if wanted.asked_ns <= instance.since_ns or (not wanted.wanted and wanted.cause == "shutdown"):
                return None
            return Spawn() if wanted.wanted else Forget(wanted.cause)
        case _ if vitals.killed is not None:
            return None
        case State.LOADING:
            if not wanted.wanted or _is_replaced(instance, wanted):
                return Signal(wanted.cause)
            return Signal("unhealthy", kill=True) if vitals.still_s >= limits.load_stall_s else None
        case State.READY:
            if not wanted.wanted or _is_replaced(instance, wanted):
                return Drain(wanted.cause)
            # What does not answer would not hear SIGTERM either: no STOPPING here.
            ill = vitals.missed >= limits.max_missed or _is_stuck(vitals, limits)
            return Signal("unhealthy", kill=True) if ill else None
        case State.DRAINING:
            for_s = min(for_s, (now_ns - vitals.watched_ns) / 1e9)
            cause = wanted.cause if _is_overtaken(instance, wanted) else instance.cause
            return _wait_or(Signal(cause), _drain_s(instance, vitals, wanted, limits) - for_s)
        case State.STOPPING:
            return _wait_or(Signal(instance.cause, kill=True), limits.stop_timeout_s - for_s)


def _drain_s(instance: Instance, vitals: Vitals, wanted: Wanted, limits: Limits) -> float:
    """How long it may take to become idle.

    Nobody's answer is cut off for another model's sake, or for maintenance; whoever unloads it meanwhile waits no
    longer than for any other unload.
    """
    if vitals.busy_slots == 0:
        return _DRAIN_GRACE_S
    patient = _is_patient(instance.cause) and not _is_overtaken(instance, wanted)
    works = vitals.busy_slots is not None and not vitals.stalled and vitals.missed < limits.max_missed
    return limits.evict_timeout_s if works and patient else limits.drain_timeout_s


def _is_overtaken(instance: Instance, wanted: Wanted) -> bool:
    """Whether somebody has unloaded it while it was drained with more patience than that has."""
    return _is_patient(instance.cause) and not wanted.wanted and not _is_patient(wanted.cause)


def _is_patient(cause: str) -> bool:
    return cause.startswith(EVICTED) or cause == DRAINED


def _is_stuck(vitals: Vitals, limits: Limits) -> bool:
    """Whether it looks well and answers nobody, as one does that has run out of memory on its GPU."""
    return 0 < limits.answer_kill_s <= vitals.stuck_s


def _is_replaced(instance: Instance, wanted: Wanted) -> bool:
    return wanted.replaces == instance.generation > 0


def _wait_or(action: Action, left_s: float) -> Action:
    return action if left_s <= 0 else Wait(left_s)


def is_settled(instance: Instance, wanted: Wanted) -> bool:
    """Nothing runs and nothing will be started."""
    return not wanted.wanted and instance.state in {State.STOPPED, State.FAILED}


def has_crashes_to_forget(instance: Instance) -> bool:
    """Whether they keep it from being started now."""
    return instance.state in {State.BACKOFF, State.FAILED}


def is_leaving(instance: Instance, wanted: Wanted) -> bool:
    """Its process takes no more work, or is about to hear so; its memory comes back."""
    running = instance.state in {State.LOADING, State.READY}
    unwanted = not wanted.wanted or _is_replaced(instance, wanted)
    return instance.state in {State.DRAINING, State.STOPPING} or (running and unwanted)


def may_have_memory(instance: Instance, wanted: Wanted) -> bool:
    """Whether memory that was promised to it stays its own: it has a process, or one is about to be started.

    With the fact that it has exited for good, or failed, every promise ends (`ends_promise`).
    """
    return instance.state in ALIVE or wanted.wanted


def ends_promise(event: InstanceEvent) -> bool:
    """Whether the memory is free after this fact. After a crash it is kept for the restart."""
    return isinstance(event, InstanceFailed) or (isinstance(event, InstanceExited) and event.restart_at_ns is None)


def mermaid() -> str:
    """Render `NEXT` as a Mermaid state diagram for the README."""
    rows = [
        f"  {state} --> {target}: {event.__name__.removeprefix('Instance').lower()}"
        for state, row in NEXT.items()
        for event, target in row.items()
        if target is not state
    ]
    return "\n".join(["stateDiagram-v2", f"  [*] --> {State.STOPPED}", *rows])

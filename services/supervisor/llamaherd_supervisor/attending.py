"""Watches one process of an instance from its start to its end, and tells the instance's owner what it sees."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, Final, Protocol

from llamaherd_shared.tasks import end
from llamaherd_supervisor import load_progress
from llamaherd_supervisor.faults import find_fault
from llamaherd_supervisor.launching import Plan
from llamaherd_supervisor.lifecycle import Instance, State
from llamaherd_supervisor.load_progress import LoadProgress
from llamaherd_supervisor.load_time import Headway, Signs, look_again
from llamaherd_supervisor.observations import (
    AnswersStood,
    HealthAnswered,
    HealthMissed,
    LoadProgressed,
    LoadStood,
    Observation,
    ProcessExited,
    SlotsCounted,
)
from llamaherd_supervisor.process import KILLED_S, Process
from llamaherd_supervisor.tail import LineSource
from llamaherd_supervisor.upstream import Upstream
from llamaherd_supervisor.work import Work
from llamaherd_supervisor.work import look_again as look_at_work
from llamaherd_supervisor.workplace import Workplace

_FIRST_PROBE_S: Final = 0.02
_LOADING_PROBE_S: Final = 0.25
"""Probes of a loading instance begin quickly, for small models, and slow down to this."""
_PROGRESS_S: Final = 0.25
_HEADWAY_S: Final = 2.0
"""Between two looks at whether a load goes on at all."""
_SLOTS_S: Final = 0.1
_USE_S: Final = 30.0
"""Between two looks at what a ready instance works on."""
_LINES_TOLD: Final = 20
"""Of the end of a log, in the fact about an exit that nobody asked for."""
_LOG_BUSY_S: Final = 0.05
_LOG_IDLE_S: Final = 0.2
_LOG_SILENT_S: Final = 0.5
"""Pauses between two looks at a log file: while lines come, behind them, and when none has come for long."""
_SILENT_S: Final = 5.0
_LATE_S: Final = 0.002
_NOTE_S: Final = 5.0
"""Between two notes in the record of how far the log was read."""


class Watchers:
    """Tasks that are ended together; one that fails says so."""

    def __init__(self, at: Workplace, name: str) -> None:
        """`name`: of the instance they watch."""
        self._at, self._name = at, name
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        task.add_done_callback(self._tell_failure)
        self._tasks.append(task)
        return task

    async def end(self) -> None:
        await end(*self._tasks)
        self._tasks.clear()

    def _tell_failure(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._at.service.log.error("an instance is no longer watched", instance=self._name, exc_info=error)


class Attended(Protocol):
    """The owner of the instance whose process it is."""

    instance: Instance

    def tell(self, seen: Observation) -> None:
        """Report what was seen; returns at once."""

    def note_log(self, read_bytes: int) -> None:
        """So much of its log has been passed on."""

    def note_idle(self, idle_s: float) -> None:
        """It has worked on nothing for so long."""


class Attendant:
    """Of one process. Its watchers end with it, or when another one takes its place."""

    def __init__(
        self,
        owner: Attended,
        at: Workplace,
        watchers: Watchers,
        process: Process,
        tail: LineSource,
        upstream: Upstream,
        plan: Plan | None,
    ) -> None:
        """`plan`: what it was started with; `None` when nobody knows."""
        self._owner, self._at, self._watchers = owner, at, watchers
        self._process, self._tail, self.upstream = process, tail, upstream
        self._is_llama_server = plan is None or not plan.command
        self._health_path = plan.health_path if plan is not None and plan.command else "/health"
        self._generation = owner.instance.generation
        self._name = owner.instance.name
        self._oom_kills = at.oom_kills.now()
        """Of this machine, when the process was last known to be well, or up to a second before."""
        self.progress = LoadProgress(owner.instance.stage, owner.instance.ratio)
        self._lines = 0
        """Lines of its load that are its own, and no answer to our probes."""
        self._stuck = False
        """Whether it was said that nothing of its answers moves."""

    def begin(self, file_bytes: int) -> None:
        """`file_bytes`: size of the model, of which the load's progress is a share."""
        following = self._watchers.start(self._follow_log(file_bytes))
        probing = self._watchers.start(self._probe())
        self._watchers.start(self._watch_use())
        self._watchers.start(self._await_exit(following, probing))
        if self._state is State.LOADING:
            self._watchers.start(self._watch_load())

    def count_slots(self) -> None:
        """Tell who is still at work, while it is drained."""
        self._watchers.start(self._count_slots())

    def doubt(self) -> None:
        """It was killed: say when not even that ends it, as it waits in the kernel, for a device or a disk."""
        self._watchers.start(self._doubt())

    def leave(self) -> None:
        """Another process takes its place."""
        self._say_stuck(0.0)

    @property
    def _state(self) -> State:
        return self._owner.instance.state

    # Its end.

    async def _await_exit(self, *others: "asyncio.Task[None]") -> None:
        await self._process.ended()
        await self._at.turns.take()
        exit_code, signal = await self._process.clear()
        await end(*others)
        lines = await self._tail.finish()
        self._owner.tell(
            describe_exit(
                self._owner.instance,
                lines,
                generation=self._generation,
                exit_code=exit_code,
                signal=signal,
                llama_server=self._is_llama_server,
                oom_killed=self._at.oom_kills.now() > self._oom_kills,
            )
        )

    async def _doubt(self) -> None:
        await asyncio.sleep(KILLED_S)
        if not self._process.is_gone:
            self._at.service.log.error("a llama-server cannot be killed", instance=self._name, pid=self._process.pid)

    # Its log, and its load.

    async def _follow_log(self, file_bytes: int) -> None:
        tail = self._tail
        next_progress = next_note = heard_at = 0.0
        while True:
            await self._at.turns.take()
            lines = tail.read()
            now = time.monotonic()
            if lines:
                heard_at = now
            if self._state is State.LOADING:
                self._lines += sum(self._health_path not in line for line in lines)
                for line in lines:
                    self.progress = load_progress.read_line(self.progress, line)
                if now >= next_progress:
                    next_progress = now + _PROGRESS_S
                    self._report_progress(file_bytes)
                await asyncio.sleep(_LOG_BUSY_S)
            else:
                if not lines and now >= next_note:
                    next_note = now + _NOTE_S
                    self._owner.note_log(tail.read_bytes)
                silent = now - heard_at >= _SILENT_S
                await _pause(_LOG_BUSY_S if lines else _LOG_SILENT_S if silent else _LOG_IDLE_S)

    def _report_progress(self, file_bytes: int) -> None:
        resident_bytes = self._process.resident_bytes()
        self.progress = load_progress.read_memory(self.progress, resident_bytes=resident_bytes, file_bytes=file_bytes)
        # Of use only while it is new: while the bus is away it is not queued behind the facts that matter.
        if not self._at.journal.waiting:
            self._owner.tell(LoadProgressed(self._generation, self.progress.stage, self.progress.ratio))

    async def _watch_load(self) -> None:
        """Looks are counted, not the clock: a machine that was asleep has lost no time."""
        every_s = min(_HEADWAY_S, self._at.settings.limits().load_stall_s / 4)
        headway = Headway(self._signs())
        while self._state is State.LOADING:
            await asyncio.sleep(every_s)
            await self._at.turns.take()
            headway = look_again(headway, self._signs(), after_s=every_s)
            self._owner.tell(LoadStood(self._generation, headway.still_s))

    def _signs(self) -> Signs:
        resident_bytes, read_bytes = self._process.growth_bytes()
        return Signs(lines=self._lines, resident_bytes=resident_bytes, read_bytes=read_bytes)

    # Its health.

    async def _probe(self) -> None:
        settings, upstream = self._at.settings, self.upstream
        if self._state is State.LOADING:
            self._owner.tell(await self._first_answer())
            await asyncio.sleep(settings.probe_interval_s)
        missed = False
        while True:
            await self._at.turns.take()
            if await upstream.probe_health(timeout_s=settings.probe_timeout_s) != 200:
                missed = True
                self._owner.tell(HealthMissed(self._generation))
            else:
                self._oom_kills = self._at.oom_kills.lately()
                if missed:
                    missed = False
                    self._owner.tell(HealthAnswered(self._generation))
            await _pause(settings.probe_interval_s)

    async def _first_answer(self) -> HealthAnswered:
        timeout_s, upstream = self._at.settings.probe_timeout_s, self.upstream
        delay_s = _FIRST_PROBE_S
        await self._at.turns.take()
        while (
            await upstream.probe_health(timeout_s=timeout_s) != 200
            or (props := await upstream.probe_props(timeout_s=timeout_s)) is None
        ):
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 1.3, _LOADING_PROBE_S)
            await self._at.turns.take()
        return HealthAnswered(self._generation, props.total_slots, props.default_generation_settings.n_ctx)

    # Its work.

    async def _watch_use(self) -> None:
        """Tell of answers that stand still, and of idleness: some were started for a while only."""
        settings, spec = self._at.settings, self._at.offers.spec(self._owner.instance.model)
        every_s = min(_USE_S, settings.answer_stall_s / 4, spec.replica_idle_s / 4)
        work = Work()
        while True:
            await asyncio.sleep(every_s)
            if self._state is not State.READY:
                self._say_stuck(0.0)
                continue
            await self._at.turns.take()
            use = await self.upstream.probe_use(timeout_s=settings.probe_timeout_s)
            work = look_at_work(work, use, after_s=every_s)
            self._owner.tell(AnswersStood(self._generation, work.still_s))
            self._say_stuck(work.still_s)
            self._owner.note_idle(work.idle_s)

    def _say_stuck(self, still_s: float) -> None:
        """Once, when it begins, and when it is over."""
        stuck = still_s >= self._at.settings.answer_stall_s
        if stuck is not self._stuck:
            self._stuck = stuck
            text = f"{self._name} looks well, and nothing of its answers has moved for {still_s:.0f} s."
            self._at.service.remark(text if stuck else "", about=f"stuck {self._name}")
            if stuck:
                self._at.service.log.warning("an instance makes no headway", instance=self._name, for_s=round(still_s))

    async def _count_slots(self) -> None:
        settings = self._at.settings
        tokens, moved = None, time.monotonic()
        while self._state is State.DRAINING:
            await self._at.turns.take()
            use = await self.upstream.probe_use(timeout_s=settings.probe_timeout_s)
            if use is not None and (use.tokens is None or use.tokens != tokens):
                tokens, moved = use.tokens, time.monotonic()
            stalled = time.monotonic() - moved >= settings.answer_stall_s
            if use is not None or stalled:
                self._owner.tell(SlotsCounted(self._generation, use.busy if use is not None else 1, stalled))
            await asyncio.sleep(_SLOTS_S)


def describe_exit(
    instance: Instance,
    lines: tuple[str, ...],
    *,
    generation: int,
    exit_code: int | None = None,
    signal: str | None = None,
    lost: bool = False,
    llama_server: bool = True,
    oom_killed: bool = False,
) -> ProcessExited:
    """The end of a process of this instance, with the cause that its last lines tell.

    `lost`: it ended while no supervisor watched. `oom_killed`: the kernel has killed something for want of memory.
    """
    fault = find_fault(
        lines,
        signal=signal,
        loading=instance.state is State.LOADING,
        llama_server=llama_server,
        oom_killed=oom_killed,
    )
    return ProcessExited(
        generation=generation,
        exit_code=exit_code,
        signal=signal,
        last_lines=lines[-_LINES_TOLD:],
        fault=fault,
        lost=lost,
    )


async def _pause(seconds: float) -> None:
    """Until just behind a multiple of it: all who pause for the same time wake up together, not one by one."""
    # Not at the multiple itself: the loop's clock has milliseconds, and may ring a little before it.
    await asyncio.sleep(seconds - time.monotonic() % seconds + _LATE_S)

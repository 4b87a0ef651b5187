"""Messages in, facts out: the owner of each instance.

One task owns an instance. Its watchers (exit, health, log) and the commands only put messages in its inbox; it alone
decides, records and acts. It never waits for the bus: the journal does (`journal.py`).
"""

import asyncio
import random
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from llamaherd_shared.errors import Rejected, Unavailable
from llamaherd_shared.events.instance import (
    InstanceEvent,
    InstanceExited,
    InstanceFailed,
    InstanceReady,
    InstanceStarted,
)
from llamaherd_shared.events.model import ModelEvent, ModelFound
from llamaherd_shared.model_options import LoadOptions
from llamaherd_shared.service import Service
from llamaherd_shared.tasks import end
from llamaherd_shared.upstream_key import upstream_key
from llamaherd_supervisor import instance_files, load_progress, reconcile
from llamaherd_supervisor.adoption import Adopt, Gone, Left, Record, key_digest
from llamaherd_supervisor.command_line import Launch, render_command, render_environment, render_mark
from llamaherd_supervisor.faults import find_fault
from llamaherd_supervisor.instance_log import InstanceLog
from llamaherd_supervisor.journal import Journal
from llamaherd_supervisor.launching import Plan, differences, make_plan
from llamaherd_supervisor.lifecycle import (
    ALIVE,
    EVICTED,
    AnswersStood,
    Drain,
    DrainBegan,
    Forget,
    Forgotten,
    HealthAnswered,
    HealthMissed,
    Instance,
    LoadProgressed,
    LoadStood,
    MemoryAwaited,
    MemoryRefused,
    Observation,
    ProcessExited,
    Signal,
    Signalled,
    SlotsCounted,
    Spawn,
    Spawned,
    SpawnFailed,
    State,
    Vitals,
    Wait,
    Wanted,
    describe_ending,
    ends_promise,
    evolve,
    is_leaving,
    is_settled,
    may_have_memory,
    next_action,
    notice,
    observe,
)
from llamaherd_supervisor.load_progress import LoadProgress
from llamaherd_supervisor.load_time import Headway, Signs, look_again
from llamaherd_supervisor.memory import Memory
from llamaherd_supervisor.offers import Offers
from llamaherd_supervisor.process import KILLED_S, CannotSpawn, OomKills, Ports, Process, boot_id
from llamaherd_supervisor.reconcile import Load
from llamaherd_supervisor.settings import SupervisorSettings, read_reference
from llamaherd_supervisor.store import check_files
from llamaherd_supervisor.tail import LineSource, Tail
from llamaherd_supervisor.upstream import OtherServer, Upstream, props_of
from llamaherd_supervisor.work import Use, Work
from llamaherd_supervisor.work import look_again as look_at_work

HOST: Final = "127.0.0.1"
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


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """What every owner works with."""

    service: Service
    settings: SupervisorSettings
    journal: Journal
    llama_server: str
    secret: bytes
    environment: Mapping[str, str]
    models: Mapping[str, ModelEvent]
    """The last fact about each model file, kept current by `app.py`."""
    offers: Offers
    """What llamaherd.yaml says about models."""
    memory: Memory
    spawning: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by the owner that starts a process."""
    ports: Ports = field(default_factory=lambda: Ports(HOST))
    oom_kills: OomKills = field(default_factory=OomKills)

    @property
    def node(self) -> str:
        return self.service.common.node

    @property
    def data_dir(self) -> Path:
        return self.service.common.data_dir

    def plan(
        self, instance: Instance, asked: LoadOptions, offers: Offers | None = None, found: ModelEvent | None = None
    ) -> Plan:
        """What a process of this model would be started with now, or with other offers and another fact about it."""
        found = found or self.models.get(instance.model)
        if not isinstance(found, ModelFound):
            # Its file is gone, or cannot be read any more; llama-server will say so.
            found = ModelFound(
                node=self.node, model=instance.model, at_ns=0, path=instance.path, size_bytes=0, modified_ns=0
            )
        return make_plan(
            (offers or self.offers).spec(instance.model).of_instance(instance.index),
            found,
            asked,
            models_dir=self.settings.models_dir,
            secret=self.secret,
        )


class Owner:
    """The one task that owns an instance."""

    def __init__(self, instance: Instance, at: Workplace, wanted: Wanted, plan: Plan | None = None) -> None:
        """`plan`: what a process that is to be adopted was started with."""
        self.instance = instance
        self.key = (instance.model, instance.index)
        self._at = at
        self._limits = at.settings.limits()
        self._inbox: asyncio.Queue[Any] = asyncio.Queue()
        """Takes what is wanted (`Wanted`, `Load`) and what was seen."""
        self._wanted = wanted
        self.is_wanted = wanted.wanted
        """Whether it is to run, by what was said last: it may not have been heard yet."""
        self._vitals = Vitals()
        self._process: Process | None = None
        self._upstream: Upstream | None = None
        """The server of the process, once it is attended to."""
        self._plan = plan
        """What runs was started with; `None` when nobody knows."""
        self._record: Record | None = None
        """Of the running process; `None` without one, or when it could not be written."""
        self._watchers: list[asyncio.Task[None]] = []
        self._log_files = InstanceLog(
            at.service, self._folder, instance.model, instance.index, max_bytes=at.settings.log_max_bytes
        )
        self._progress = LoadProgress()
        self._lines = 0
        """Lines of its load that are its own, and no answer to our probes."""
        self._oom_kills = 0
        """Of this machine, when the process was last known to be well."""
        self._stuck = False
        """Whether it was said that nothing of its answers moves."""
        self.settled = asyncio.Event()
        """Set while nothing runs and nothing will be started."""

    @property
    def _name(self) -> str:
        return f"{self.instance.model}/{self.instance.index}"

    @property
    def _folder(self) -> Path:
        return self._at.data_dir / "instances"

    @property
    def subject(self) -> str:
        return self._at.service.bus.subjects.instance(self.instance.node, self.instance.model, self.instance.index)

    def ask(self, wanted: Wanted | Load) -> None:
        """Say what is wanted from now on; returns at once. Asking twice is asking once."""
        self.is_wanted = isinstance(wanted, Load) or wanted.wanted
        self.settled.clear()
        self._inbox.put_nowait(wanted)

    @property
    def has_failed(self) -> bool:
        return self.instance.state is State.FAILED

    @property
    def is_ready(self) -> bool:
        return self.instance.state is State.READY

    @property
    def is_leaving(self) -> bool:
        return is_leaving(self.instance, self._wanted)

    @property
    def pid(self) -> int | None:
        """Of its process; `None` without one."""
        return self.instance.pid if self.instance.state in ALIVE else None

    async def probe_use(self, *, timeout_s: float) -> Use | None:
        """What it works on; `None`: it does not say."""
        return None if self._upstream is None else await self._upstream.probe_use(timeout_s=timeout_s)

    def wake(self) -> None:
        """Look again what to do; returns at once."""
        self._inbox.put_nowait(None)

    def replaced_by(self, load: Load) -> int:
        """Generation of the process that this load would stop first, as things are now; 0: of none."""
        replaces = self.wanted_after(load).replaces
        return replaces if self.instance.state in ALIVE and replaces == self.instance.generation else 0

    def changes(self, offers: Offers | None = None, found: ModelFound | None = None) -> list[str]:
        """Why what runs is not what would be started now, or with these (`launching.differences`).

        Empty: it is, or nothing runs that is to run on, or the model is gone, of which nothing better could be started.
        """
        found_now = found or self._at.models.get(self.instance.model)
        if self._plan is None or self.instance.state not in ALIVE or not self._wanted.wanted:
            return []
        if not isinstance(found_now, ModelFound):
            return []
        return differences(self._plan, self._at.plan(self.instance, self._wanted.options, offers, found_now))

    @property
    def asked_options(self) -> LoadOptions:
        """What its last load asked for."""
        return self._wanted.options

    def reload(self) -> None:
        """Start what runs again, as it would be started now; returns at once."""
        if self._wanted.wanted:
            self.ask(msgspec.structs.replace(self._wanted, cause="reload", replaces=self.instance.generation))

    def tell(self, seen: Observation) -> None:
        """Report what was seen; returns at once."""
        self._inbox.put_nowait(seen)

    async def run(self, left: Left | None = None) -> None:
        """Act until cancelled. A cancelled owner leaves its process running, for the next supervisor to adopt.

        `left` is what the supervisor before us left of this instance; `None` for one that is new.
        """
        try:
            if left is not None:
                await self._take_over(left)
            while True:
                await self._step()
        finally:
            await self._end_watchers()
            self._log_files.flush()

    async def _step(self) -> None:
        action = next_action(self.instance, self._vitals, self._wanted, limits=self._limits, now_ns=time.time_ns())
        if not may_have_memory(self.instance, self._wanted):
            self._at.memory.release(self.key)
        match action:
            case Spawn():
                if self._at.memory.is_promised(self.key):
                    await self._spawn_in_turn()
                else:
                    await self._wait_for_memory()
            case Drain(cause=cause):
                self._see(DrainBegan(cause))
                self._watch(self._count_slots())
            case Signal(cause=cause, kill=kill):
                if self._process is not None:
                    self._process.send(kill=kill)
                    if kill:
                        self._watch(self._doubt(self._process))
                self._see(Signalled(cause, kill))
            case Forget(cause=cause):
                self._see(Forgotten(cause))
            case Wait(seconds=seconds):
                await self._receive(seconds)
            case None:
                if self._inbox.empty() and is_settled(self.instance, self._wanted):
                    self.settled.set()
                await self._receive(None)

    async def _wait_for_memory(self) -> None:
        """Ask for it, and wait for news."""
        plan, wanted = self._at.plan(self.instance, self._wanted.options), self._wanted
        await self._at.memory.wish(self, plan, asked_ns=wanted.asked_ns, may_evict=wanted.may_evict)
        await self._receive(None)

    async def _receive(self, seconds: float | None) -> None:
        try:
            async with asyncio.timeout(seconds):
                message = await self._inbox.get()
        except TimeoutError:
            return
        match message:
            case None:
                pass
            case MemoryAwaited() | MemoryRefused() if not self._wanted.wanted:
                pass  # told before the wish was withdrawn
            case Wanted():
                self._wanted = message
            case Load():
                self._wanted = self.wanted_after(message)
            case _:
                self._see(message)

    def wanted_after(self, load: Load) -> Wanted:
        """What will be wanted once this load has been heard."""
        plan = self._plan
        if plan is None or self._wanted.replaces == self.instance.generation or self.instance.state not in ALIVE:
            plan = self._at.plan(self.instance, self._wanted.options)
        told = plan.options.said
        found = self._at.models.get(self.instance.model)
        if isinstance(found, ModelFound) and not self.instance.context_tokens:
            # While it loads nobody knows better than its file what it will have.
            told.setdefault("context_tokens", found.context_tokens)
        return reconcile.heed(self._wanted, load, self.instance, told=told)

    def _see(self, seen: Observation) -> None:
        now_ns = time.time_ns()
        events = observe(self.instance, self._vitals, seen, limits=self._limits, now_ns=now_ns, jitter=random.random())
        for event in events:
            self.instance = evolve(self.instance, event)
            self._at.journal.record(self.subject, event)
            self._log(event)
            if ends_promise(event):
                self._at.memory.release(self.key)
            elif isinstance(event, InstanceReady):
                self._at.memory.look()
        self._vitals = notice(self.instance, self._vitals, seen)

    def _log(self, event: InstanceEvent) -> None:
        name = f"{event.model}/{event.index}"
        match event:
            case InstanceStarted():
                self._at.service.log.info("llama-server started", instance=name, pid=event.pid, port=event.port)
            case InstanceExited(cause="unload" | "shutdown" | "reload" | "idle" | "drained"):
                self._at.service.log.info("llama-server stopped", instance=name, cause=event.cause)
            case InstanceExited() if event.cause.startswith(EVICTED):
                self._at.service.log.info("llama-server stopped", instance=name, cause=event.cause)
            case InstanceExited(cause="reset"):
                self._at.service.log.info("crashes forgotten", instance=name)
            case InstanceExited():
                ending = describe_ending(event.exit_code, event.signal)
                self._at.service.log.warning("llama-server ended", instance=name, cause=event.cause, ending=ending)
            case InstanceFailed():
                self._at.service.log.error("given up", instance=name, reason=event.reason)
            case _:
                pass

    # What follows acts on the outside.

    async def _spawn_in_turn(self) -> None:
        """One of all owners at a time: many that start at once would keep everything else waiting."""
        async with self._at.spawning:
            if self._inbox.empty():
                await self._spawn()
        # What came in meanwhile may have changed what is to be done.
        while not self._inbox.empty():
            await self._receive(None)

    async def _take_over(self, left: Left) -> None:
        """Go on where the supervisor before us ended: its lines first, then what has become of the process."""
        tail = await self._log_files.reopen(left.record, generation=self.instance.generation)
        match left.found:
            case Adopt(record=record, process=running, untold=untold):
                for seen in untold:
                    self._see(seen)
                self._record, self._plan = record, record.plan
                self._vitals = Vitals(watched_ns=time.time_ns())
                self._write_record(pid=running.pid, process_started_s=running.started_s)
                self._at.service.log.info("llama-server adopted", instance=self._name, pid=running.pid)
                tail = tail or self._log_files.open(record.generation)
                adopted = Process.adopt(running, asked=self.instance.state is State.STOPPING)
                self._attend(adopted, tail, host=record.host, port=record.port)
                self._watch(self._count_slots())
                if record.plan is not None:
                    await self._at.memory.adopt(self, record.plan)
            case Gone():
                lines = await tail.finish() if tail is not None else ()
                self._see(self._exited(self.instance.generation, lines, lost=True))
            case None:
                if tail is not None:
                    await tail.finish()

    def _write_record(self, **changes: Any) -> None:
        """An instance whose record cannot be written is served all the same; the next supervisor will not adopt it."""
        if self._record is None:
            return
        self._record = msgspec.structs.replace(self._record, **changes)
        try:
            instance_files.write_record(self._folder, self._record)
        except Unavailable as error:
            self._at.service.log.warning("an instance cannot be adopted", instance=self._name, why=error.message)

    async def _spawn(self) -> None:
        await self._end_watchers()
        model, index, generation = self.instance.model, self.instance.index, self.instance.generation + 1
        asked = self._wanted.options
        self._plan = self._at.plan(self.instance, asked)
        plan = self._plan.fitted(self._at.memory.context_tokens(self.key))
        tail: Tail | None = None
        try:
            tail = self._log_files.open(generation)
            check_files(model, plan)
            port = self._at.ports.take()
            launch = Launch(program=self._at.llama_server, model=model, plan=plan, host=HOST, port=port)
            key = self._key(generation)
            mark = render_mark(
                str(self._at.data_dir), node=self._at.node, model=model, index=index, generation=generation
            )
            environment = render_environment(
                self._at.environment, self._configured_environment(), api_key=key, mark=mark
            )
            program, *arguments = render_command(launch)
            self._record = Record(
                node=self._at.node,
                model=model,
                index=index,
                generation=generation,
                mark=mark,
                boot_id=boot_id(),
                host=HOST,
                port=port,
                path=plan.path,
                command=(program, *arguments),
                plan=self._plan,
                asked=asked,
                key_sha256=key_digest(key),
            )
            self._write_record()
            process = await Process.spawn(program, arguments, environment, log_path=tail.path)
        except (CannotSpawn, Unavailable, Rejected, OSError) as error:
            if tail is not None:
                await tail.finish()
            instance_files.remove_record(self._folder, model, index)
            self._see(SpawnFailed(str(error)))
            return
        self._write_record(pid=process.pid, process_started_s=process.started_s)
        self._see(
            Spawned(
                pid=process.pid,
                process_started_s=process.started_s,
                host=HOST,
                port=port,
                path=plan.path,
                options=plan.options.said,
            )
        )
        self._attend(process, tail, host=HOST, port=port)

    def _configured_environment(self) -> dict[str, str]:
        """Variables of the model's entry, looked up where it says. Raises `Rejected`."""
        model = self.instance.model
        return {
            name: read_reference(value, self._at.environment, setting=f"models.{model}.env.{name}")
            for name, value in self._at.offers.spec(model).of_instance(self.instance.index).env.items()
        }

    def _key(self, generation: int) -> str:
        """Of a spawn, for what we ask it."""
        model, index = self.instance.model, self.instance.index
        return upstream_key(self._at.secret, node=self._at.node, model=model, index=index, generation=generation)

    def _attend(self, process: Process, tail: LineSource, *, host: str, port: int) -> None:
        """Watch a process from now on."""
        model, generation = self.instance.model, self.instance.generation
        found = self._at.models.get(model)
        key = self._key(generation)
        self._process = process
        self._oom_kills = self._at.oom_kills.now()
        self._progress = LoadProgress(self.instance.stage, self.instance.ratio)
        upstream, plan = Upstream(host, port, key), self._plan
        if plan is not None and plan.command:
            upstream = OtherServer(
                host,
                port,
                key,
                health_path=plan.health_path,
                said=props_of(plan.options),
                clients=partial(process.clients, port),
            )
        self._upstream = upstream
        file_bytes = found.size_bytes + found.projector_bytes if isinstance(found, ModelFound) else 0
        self._watch(self._watch_use(upstream, generation))
        following = self._watch(self._follow_log(process, tail, generation, file_bytes))
        probing = self._watch(self._probe(upstream, generation))
        self._watch(self._await_exit(process, tail, generation, (following, probing)))
        if self.instance.state is State.LOADING:
            self._watch(self._watch_load(process, generation))

    def _watch(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        task.add_done_callback(self._tell_failure)
        self._watchers.append(task)
        return task

    def _tell_failure(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._at.service.log.error("an instance is no longer watched", instance=self._name, exc_info=error)

    async def _end_watchers(self) -> None:
        await end(*self._watchers)
        self._watchers.clear()

    async def _doubt(self, killed: Process) -> None:
        """Say when not even SIGKILL ends it: it waits in the kernel, for a device or a disk."""
        await asyncio.sleep(KILLED_S)
        if not killed.is_gone:
            self._at.service.log.error("a llama-server cannot be killed", instance=self._name, pid=killed.pid)

    async def _await_exit(
        self, process: Process, tail: LineSource, generation: int, others: tuple["asyncio.Task[None]", ...]
    ) -> None:
        exit_code, signal = await process.wait()
        await end(*others)
        lines = await tail.finish()
        self.tell(self._exited(generation, lines, exit_code=exit_code, signal=signal))

    def _exited(
        self,
        generation: int,
        lines: tuple[str, ...],
        *,
        exit_code: int | None = None,
        signal: str | None = None,
        lost: bool = False,
    ) -> ProcessExited:
        fault = find_fault(
            lines,
            signal=signal,
            loading=self.instance.state is State.LOADING,
            llama_server=self._plan is None or not self._plan.command,
            oom_killed=not lost and self._at.oom_kills.now() > self._oom_kills,
        )
        return ProcessExited(
            generation=generation,
            exit_code=exit_code,
            signal=signal,
            last_lines=lines[-_LINES_TOLD:],
            fault=fault,
            lost=lost,
        )

    async def _follow_log(self, process: Process, tail: LineSource, generation: int, file_bytes: int) -> None:
        next_progress = next_note = heard_at = 0.0
        while True:
            lines = tail.read()
            now = time.monotonic()
            if lines:
                heard_at = now
            if self.instance.state is State.LOADING:
                self._lines += sum(self._health_path not in line for line in lines)
                for line in lines:
                    self._progress = load_progress.read_line(self._progress, line)
                if now >= next_progress:
                    next_progress = now + _PROGRESS_S
                    self._report_progress(process, generation, file_bytes)
                await asyncio.sleep(_LOG_BUSY_S)
            else:
                if not lines and now >= next_note:
                    next_note = now + _NOTE_S
                    self._note_log(tail)
                silent = now - heard_at >= _SILENT_S
                await _pause(_LOG_BUSY_S if lines else _LOG_SILENT_S if silent else _LOG_IDLE_S)

    def _note_log(self, tail: LineSource) -> None:
        if self._record is not None and self._record.log_bytes != tail.read_bytes:
            self._write_record(log_bytes=tail.read_bytes)

    async def _watch_load(self, process: Process, generation: int) -> None:
        """Looks are counted, not the clock: a machine that was asleep has lost no time."""
        every_s = min(_HEADWAY_S, self._limits.load_stall_s / 4)
        headway = Headway(self._signs(process))
        while self.instance.state is State.LOADING:
            await asyncio.sleep(every_s)
            headway = look_again(headway, self._signs(process), after_s=every_s)
            self.tell(LoadStood(generation, headway.still_s))

    def _signs(self, process: Process) -> Signs:
        resident_bytes, read_bytes = process.growth_bytes()
        return Signs(lines=self._lines, resident_bytes=resident_bytes, read_bytes=read_bytes)

    @property
    def _health_path(self) -> str:
        plan = self._plan
        return plan.health_path if plan is not None and plan.command else "/health"

    def _report_progress(self, process: Process, generation: int, file_bytes: int) -> None:
        self._progress = load_progress.read_memory(
            self._progress, resident_bytes=process.resident_bytes(), file_bytes=file_bytes
        )
        # Of use only while it is new: while the bus is away it is not queued behind the facts that matter.
        if not self._at.journal.waiting:
            self.tell(LoadProgressed(generation, self._progress.stage, self._progress.ratio))

    async def _probe(self, upstream: Upstream, generation: int) -> None:
        settings = self._at.settings
        if self.instance.state is State.LOADING:
            self.tell(await self._first_answer(upstream, generation))
            await asyncio.sleep(settings.probe_interval_s)
        while True:
            well = await upstream.probe_health(timeout_s=settings.probe_timeout_s) == 200
            if not well:
                self.tell(HealthMissed(generation))
            else:
                self._oom_kills = self._at.oom_kills.lately()
                if self._vitals.missed:
                    self.tell(HealthAnswered(generation))
            await asyncio.sleep(settings.probe_interval_s)

    async def _first_answer(self, upstream: Upstream, generation: int) -> HealthAnswered:
        timeout_s = self._at.settings.probe_timeout_s
        delay_s = _FIRST_PROBE_S
        while (
            await upstream.probe_health(timeout_s=timeout_s) != 200
            or (props := await upstream.probe_props(timeout_s=timeout_s)) is None
        ):
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 1.3, _LOADING_PROBE_S)
        return HealthAnswered(generation, props.total_slots, props.default_generation_settings.n_ctx)

    async def _watch_use(self, upstream: Upstream, generation: int) -> None:
        """Tell of answers that stand still; let go what was started for a while, and is idle."""
        settings, spec = self._at.settings, self._at.offers.spec(self.instance.model)
        every_s = min(_USE_S, settings.answer_stall_s / 4, spec.replica_idle_s / 4)
        work = Work()
        while True:
            await asyncio.sleep(every_s)
            if self.instance.state is not State.READY:
                self._say_stuck(0.0)
                continue
            use = await upstream.probe_use(timeout_s=settings.probe_timeout_s)
            work = look_at_work(work, use, after_s=every_s)
            self.tell(AnswersStood(generation, work.still_s))
            self._say_stuck(work.still_s)
            self._go_if_spare(work.idle_s)

    def _say_stuck(self, still_s: float) -> None:
        """Once, when it begins, and when it is over."""
        stuck = still_s >= self._at.settings.answer_stall_s
        if stuck is not self._stuck:
            self._stuck = stuck
            text = f"{self._name} looks well, and nothing of its answers has moved for {still_s:.0f} s."
            self._at.service.remark(text if stuck else "", about=f"stuck {self._name}")
            if stuck:
                self._at.service.log.warning("an instance makes no headway", instance=self._name, for_s=round(still_s))

    def _go_if_spare(self, idle_s: float) -> None:
        spec = self._at.offers.spec(self.instance.model)
        if self.is_wanted and self.instance.index >= spec.replicas and idle_s >= spec.replica_idle_s:
            self.ask(Wanted(wanted=False, cause="idle", asked_ns=time.time_ns()))

    async def _count_slots(self) -> None:
        generation, upstream = self.instance.generation, self._upstream
        tokens, moved = None, time.monotonic()
        while upstream is not None and self.instance.state is State.DRAINING:
            use = await upstream.probe_use(timeout_s=self._at.settings.probe_timeout_s)
            if use is not None and (use.tokens is None or use.tokens != tokens):
                tokens, moved = use.tokens, time.monotonic()
            stalled = time.monotonic() - moved >= self._at.settings.answer_stall_s
            if use is not None or stalled:
                self.tell(SlotsCounted(generation, use.busy if use is not None else 1, stalled))
            await asyncio.sleep(_SLOTS_S)


async def _pause(seconds: float) -> None:
    """Until just behind a multiple of it: all who pause for the same time wake up together, not one by one."""
    # Not at the multiple itself: the loop's clock has milliseconds, and may ring a little before it.
    await asyncio.sleep(seconds - time.monotonic() % seconds + _LATE_S)

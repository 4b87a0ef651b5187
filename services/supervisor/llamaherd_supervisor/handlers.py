"""Messages in, facts out: the owner of each instance.

One task owns an instance. Its watchers (exit, health, log) and the commands only put messages in its inbox; it alone
decides, records and acts. It never waits for the bus: the journal does (`journal.py`).
"""

import asyncio
import random
import time
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from llamaherd_shared.errors import Rejected, Unavailable
from llamaherd_shared.events.instance import (
    InstanceEvent,
    InstanceExited,
    InstanceFailed,
    InstanceReady,
    InstanceStarted,
)
from llamaherd_shared.events.model import ModelFound
from llamaherd_shared.model_options import LoadOptions
from llamaherd_shared.upstream_key import upstream_key
from llamaherd_supervisor import instance_files, reconcile
from llamaherd_supervisor.adoption import Adopt, Gone, Left, Record, key_digest
from llamaherd_supervisor.attending import Attendant, Watchers, describe_exit
from llamaherd_supervisor.command_line import Launch, render_command, render_environment, render_mark
from llamaherd_supervisor.instance_log import InstanceLog
from llamaherd_supervisor.launching import Plan, differences
from llamaherd_supervisor.lifecycle import (
    ALIVE,
    EVICTED,
    Drain,
    Forget,
    Instance,
    Signal,
    Spawn,
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
from llamaherd_supervisor.observations import (
    DrainBegan,
    Forgotten,
    MemoryAwaited,
    MemoryRefused,
    Observation,
    Signalled,
    Spawned,
    SpawnFailed,
)
from llamaherd_supervisor.offers import Offers
from llamaherd_supervisor.process import CannotSpawn, Process, boot_id
from llamaherd_supervisor.reconcile import Load
from llamaherd_supervisor.settings import read_reference
from llamaherd_supervisor.store import check_files
from llamaherd_supervisor.tail import LineSource, Tail
from llamaherd_supervisor.upstream import OtherServer, Upstream, props_of
from llamaherd_supervisor.work import Use
from llamaherd_supervisor.workplace import HOST, Workplace


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
        self._attendant: Attendant | None = None
        """Of the process."""
        self._plan = plan
        """What runs was started with; `None` when nobody knows."""
        self._record: Record | None = None
        """Of the running process; `None` without one, or when it could not be written."""
        self._watchers = Watchers(at, self.instance.name)
        self._log_files = InstanceLog(
            at.service, self._folder, instance.model, instance.index, max_bytes=at.settings.log_max_bytes
        )
        self.settled = asyncio.Event()
        """Set while nothing runs and nothing will be started."""

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
        await self._at.turns.take()
        return None if self._attendant is None else await self._attendant.upstream.probe_use(timeout_s=timeout_s)

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
            # All owners end in the same moment when the supervisor does; whoever is cancelled again waits no more.
            try:
                await self._at.turns.take()
            finally:
                await self._watchers.end()
                self._log_files.flush()

    async def _step(self) -> None:
        await self._at.turns.take()
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
                if self._attendant is not None:
                    self._attendant.count_slots()
            case Signal(cause=cause, kill=kill):
                if self._process is not None:
                    self._process.send(kill=kill)
                    if kill and self._attendant is not None:
                        self._attendant.doubt()
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
                self._at.service.log.info("llama-server adopted", instance=self.instance.name, pid=running.pid)
                tail = tail or self._log_files.open(record.generation)
                adopted = Process.adopt(running, asked=self.instance.state is State.STOPPING)
                self._attend(adopted, tail, host=record.host, port=record.port).count_slots()
                if record.plan is not None:
                    await self._at.memory.adopt(self, record.plan)
            case Gone():
                lines = await tail.finish() if tail is not None else ()
                llama_server = self._plan is None or not self._plan.command
                generation = self.instance.generation
                exited = describe_exit(
                    self.instance, lines, generation=generation, lost=True, llama_server=llama_server
                )
                self._see(exited)
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
            self._at.service.log.warning(
                "an instance cannot be adopted", instance=self.instance.name, why=error.message
            )

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

    def _attend(self, process: Process, tail: LineSource, *, host: str, port: int) -> Attendant:
        """Watch a process from now on."""
        found, plan = self._at.models.get(self.instance.model), self._plan
        key = self._key(self.instance.generation)
        upstream = Upstream(host, port, key)
        if plan is not None and plan.command:
            upstream = OtherServer(
                host,
                port,
                key,
                health_path=plan.health_path,
                said=props_of(plan.options),
                clients=partial(process.clients, port),
            )
        self._process = process
        self._attendant = Attendant(self, self._at, self._watchers, process, tail, upstream, plan)
        self._attendant.begin(found.size_bytes + found.projector_bytes if isinstance(found, ModelFound) else 0)
        return self._attendant

    async def _end_watchers(self) -> None:
        await self._watchers.end()
        if self._attendant is not None:
            self._attendant.leave()

    # What its attendant notices on the way (`attending.Attended`).

    def note_log(self, read_bytes: int) -> None:
        """In the record, for the next supervisor."""
        if self._record is not None and self._record.log_bytes != read_bytes:
            self._write_record(log_bytes=read_bytes)

    def note_idle(self, idle_s: float) -> None:
        """Let go what was started for a while."""
        spec = self._at.offers.spec(self.instance.model)
        if self.is_wanted and self.instance.index >= spec.replicas and idle_s >= spec.replica_idle_s:
            self.ask(Wanted(wanted=False, cause="idle", asked_ns=time.time_ns()))

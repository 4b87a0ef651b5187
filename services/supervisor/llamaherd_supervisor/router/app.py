"""The router of a node: a process like any llama-server, started when a model is first wanted of it."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import Final, Protocol

import msgspec

from llamaherd_shared.errors import Rejected, Unavailable
from llamaherd_shared.events import Event
from llamaherd_shared.events.instance import InstanceEvent, InstanceExited, InstanceFailed
from llamaherd_shared.model_spec import Models
from llamaherd_shared.tasks import end
from llamaherd_shared.upstream_key import ROUTER, upstream_key
from llamaherd_supervisor.adoption import Adopt, Left
from llamaherd_supervisor.eviction import Key
from llamaherd_supervisor.handlers import Owner
from llamaherd_supervisor.journal import Journal
from llamaherd_supervisor.launching import Plan
from llamaherd_supervisor.lifecycle import Instance, State, Wanted
from llamaherd_supervisor.memory import Memory, Tenant
from llamaherd_supervisor.offers import Offers
from llamaherd_supervisor.process import Ending
from llamaherd_supervisor.router.log import RouterLog, Teller
from llamaherd_supervisor.router.news import Came, News, Told, forget, read_event, read_line, read_listing, read_ports
from llamaherd_supervisor.router.preset import render_preset
from llamaherd_supervisor.router.process import Child, find_child, write_preset
from llamaherd_supervisor.router.upstream import RouterLost, RouterUpstream
from llamaherd_supervisor.workplace import Workplace

_AGAIN_S: Final = 0.2
"""Until a router whose events have ended is asked again, unless it has ended itself."""


class Member(Teller, Protocol):
    """Who owns the instance of one model."""

    def hear(self, news: News, child: Child | None) -> None:
        """Take news of its process; returns at once. `child`: with `Came`."""

    def lose(self, ending: Ending) -> None:
        """Its process has gone with the router."""


class _Silent(Journal):
    """What becomes of the router is told by what becomes of its models."""

    def record(self, subject: str, event: Event) -> None:
        pass


class _Free(Memory):
    """What the router itself takes is not worth booking; its models book for themselves."""

    def __init__(self) -> None:
        pass

    def is_promised(self, key: Key) -> bool:
        return True

    def context_tokens(self, key: Key) -> int | None:
        return None

    async def adopt(self, tenant: Tenant, plan: Plan) -> None:
        pass

    def release(self, key: Key) -> None:
        pass

    def look(self) -> None:
        pass


class RouterOwner(Owner):
    """The one task that owns the router's process."""

    def __init__(
        self, instance: Instance, at: Workplace, lines: RouterLog, heard: Callable[[InstanceEvent], None]
    ) -> None:
        super().__init__(instance, at, Wanted(wanted=instance.state is State.READY))
        self._log_files, self._heard = lines, heard

    def _log(self, event: InstanceEvent) -> None:
        super()._log(event)
        self._heard(event)


class Router:
    """Knows which models have a process below it, and asks for more and for less. Use from one event loop."""

    def __init__(self, at: Workplace, member_of: Callable[[str], Member]) -> None:
        self._at, self._member_of = at, member_of
        self._preset = at.data_dir / "instances" / f"{ROUTER}.ini"
        self.lines = RouterLog(
            at.service,
            at.data_dir / "instances",
            max_bytes=at.settings.log_max_bytes,
            teller_of=member_of,
            hear=self._hear_line,
        )
        self._owner = self._own(Instance(node=at.node, model=ROUTER))
        self._plans: dict[str, Plan] = {}
        """What each model that runs, or is about to, was started with."""
        self._asked: set[str] = set()
        self._told = Told()
        self._failure = ""
        """Why the router was given up."""
        self._changed = asyncio.Event()
        self._writing = asyncio.Lock()
        self.surveyed = asyncio.Event()
        """Set once it is known what the router of the supervisor before us runs."""
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, left: Left | None, models: Iterable[str]) -> None:
        """`left`: what the supervisor before us left of the router. `models`: those it may have run."""
        self.lines.models = list(models)
        if left is not None and isinstance(left.found, Adopt):
            left = _as_ready(left, left.found)
            self._owner = self._own(left.instance)
        else:
            self.surveyed.set()
        self._tasks = [asyncio.create_task(self._owner.run(left)), asyncio.create_task(self._follow())]

    async def stop(self, timeout_s: float) -> None:
        """End it. Whatever it runs ends with it."""
        if self._tasks:
            await end(self._tasks[1])
            self._owner.ask(Wanted(wanted=False, cause="shutdown", asked_ns=time.time_ns()))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._owner.settled.wait()

    async def close(self) -> None:
        """Leave it as it is, for the next supervisor."""
        await end(*self._tasks)

    @property
    def is_ready(self) -> bool:
        return self._owner.instance.state is State.READY

    @property
    def generation(self) -> int:
        return self._owner.instance.generation

    @property
    def host(self) -> str:
        return self._owner.instance.host

    @property
    def port(self) -> int:
        return self._owner.instance.port

    @property
    def key(self) -> str:
        return upstream_key(
            self._at.secret, node=self._at.node, model=ROUTER, index=0, generation=0, router_generation=self.generation
        )

    def keep(self, model: str, plan: Plan) -> None:
        """A model that may run already was started like that."""
        self._plans.setdefault(model, plan)

    def runs(self, model: str) -> bool:
        return model in self._told.running

    async def find(self, model: str) -> Child | None:
        """The process of this model; `None` without one. Raises `RouterLost`."""
        if not self.runs(model):
            return None
        ports = read_ports(await self._upstream.listing())
        return find_child(self._owner.instance.pid or 0, ports.get(model, 0))

    def wants_room_of(self, model: str) -> str:
        """The model that is about to take this one's place; empty when nobody knows."""
        return next((asked for asked in self._asked if asked != model and not self.runs(asked)), "")

    async def load(self, model: str, plan: Plan) -> None:
        """Return when it is loaded. Raises `RouterLost`; `RouterRefused`; `Unavailable` when there is no router."""
        await self._ready()
        self._asked.add(model)
        try:
            async with self._writing:
                self._plans[model] = plan
                self._write_preset()
                await self._upstream.read_preset()
            await self._upstream.load(model)
        finally:
            self._asked.discard(model)

    async def unload(self, model: str) -> None:
        """Returns when the process has been told to end; nothing happens when there is none."""
        try:
            await self._upstream.unload(model)
        except (RouterLost, Rejected) as error:
            self._at.service.log.warning("the router does not unload a model", model=model, why=error.message)

    # What the router tells.

    async def _follow(self) -> None:
        while True:
            await self._until(lambda: self._owner.instance.state is State.READY)
            try:
                await self._read_events()
            except (RouterLost, Rejected) as error:
                self._at.service.log.warning("the router's events have ended", why=error.message)
            await asyncio.sleep(_AGAIN_S)

    async def _read_events(self) -> None:
        read = read_listing
        async for data in self._upstream.events():
            self._told, news = read(self._told, data)
            for each in news:
                await self._pass_on(each)
            self.surveyed.set()
            read = read_event

    async def _pass_on(self, news: News) -> None:
        child = None
        if isinstance(news, Came):
            try:
                child = await self.find(news.model)
            except RouterLost:
                self._told = forget(self._told, news.model)
                raise
        self._member_of(news.model).hear(news, child)

    def _hear_line(self, line: str) -> None:
        self._told = read_line(self._told, line)

    def _heard(self, event: InstanceEvent) -> None:
        """A fact about the router's own process."""
        if isinstance(event, InstanceFailed):
            self._failure = event.reason
        if isinstance(event, InstanceExited):
            self.lines.end_all()
            lost, self._told = self._told.running, Told()
            for model in lost:
                self._member_of(model).lose((event.exit_code, event.signal))
            self.surveyed.set()
        self._changed.set()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    # What the router is told.

    async def _ready(self) -> None:
        """Have it started. Raises `Unavailable` when it was given up."""
        owner, asked_ns = self._owner, time.time_ns()
        if not self.is_ready:
            self._write_preset()
            owner.ask(Wanted(wanted=True, asked_ns=asked_ns))
        await self._until(lambda: self.is_ready or self._has_failed(asked_ns))
        if not self.is_ready:
            raise Unavailable(f"its router does not run: {self._failure}")

    def _has_failed(self, since_ns: int) -> bool:
        instance = self._owner.instance
        return instance.state is State.FAILED and instance.since_ns >= since_ns

    @property
    def _upstream(self) -> RouterUpstream:
        return RouterUpstream(self.host, self.port, self.key)

    def _write_preset(self) -> None:
        """Only what runs, or is about to, stands there: what nobody wants any more cannot spoil it for others."""
        self._plans = {model: plan for model, plan in self._plans.items() if model in self._asked or self.runs(model)}
        write_preset(self._preset, render_preset(self._plans, stop_timeout_s=self._at.settings.stop_timeout_s))

    def _own(self, instance: Instance) -> RouterOwner:
        return RouterOwner(instance, self._workplace(), self.lines, self._heard)

    def _workplace(self) -> Workplace:
        """The router is served by `command`, like any server that is not a model's own llama-server."""
        at, settings = self._at, self._at.settings
        words = ["--models-preset", str(self._preset), "--models-max", str(settings.router_max_models)]
        # What is loaded is the herd's to decide, so that an unloaded model stays unloaded.
        words += ["--no-models-autoload", "--host", "${HOST}", "--port", "${PORT}", "--metrics", "--slots"]
        command = [at.llama_server, *words, "--no-webui", *settings.router_args]
        offers = Offers(Models({ROUTER: {"command": command}}), settings.models_dir)
        journal = _Silent(at.service.bus, node=at.node)
        return dataclasses.replace(at, offers=offers, models={}, journal=journal, memory=_Free())


def _as_ready(left: Left, found: Adopt) -> Left:
    """Of its life only the record tells. It is taken to serve, and soon probed: one that does not is restarted."""
    record, running = found.record, found.process
    instance = msgspec.structs.replace(
        left.instance,
        state=State.READY,
        since_ns=time.time_ns(),
        generation=record.generation,
        pid=running.pid,
        process_started_s=running.started_s,
        host=record.host,
        port=record.port,
    )
    return Left(instance=instance, record=record, found=Adopt(record, running))

"""Messages in, facts out, for an instance that the node's router may serve: its process is below the router's.

Everything but how it starts and ends is as for any instance; which of the two it is, is settled at each start.
"""

import asyncio
import contextlib
import time
from functools import partial
from typing import Final

import msgspec

from llamaherd_shared.errors import HerdError, Rejected
from llamaherd_shared.events.line import Line
from llamaherd_shared.upstream_key import ROUTER
from llamaherd_supervisor.adoption import Adopt, Left, Record, key_digest
from llamaherd_supervisor.attending import Attendant
from llamaherd_supervisor.command_line import render_mark
from llamaherd_supervisor.handlers import Owner
from llamaherd_supervisor.launching import Plan
from llamaherd_supervisor.lifecycle import ALIVE, EVICTED, Instance, State, Vitals, Wanted
from llamaherd_supervisor.load_progress import read_share
from llamaherd_supervisor.observations import DrainBegan, Observation, Signalled, Spawned, SpawnFailed
from llamaherd_supervisor.process import Ending, boot_id
from llamaherd_supervisor.router.app import Router
from llamaherd_supervisor.router.news import Advanced, Came, News, Went
from llamaherd_supervisor.router.preset import find_obstacle
from llamaherd_supervisor.router.process import Child, Ward
from llamaherd_supervisor.router.upstream import RouterLost
from llamaherd_supervisor.store import check_files
from llamaherd_supervisor.workplace import Workplace

_AGAIN_S: Final = 0.5
"""Until a router that was lost is asked again: it is started again by its own rules."""
_NEWS_S: Final = 2.0
"""How long the news of a process may come behind the answer to the question for it."""


class _Came(msgspec.Struct, frozen=True):
    child: Child | None


class _Lost(msgspec.Struct, frozen=True):
    ending: Ending


_Heard = _Came | _Lost | Went


class RoutedOwner(Owner):
    """The one task that owns such an instance."""

    def __init__(
        self, instance: Instance, at: Workplace, wanted: Wanted, router: Router, plan: Plan | None = None
    ) -> None:
        super().__init__(instance, at, wanted, plan)
        self._router = router
        self._told: Plan | None = None
        """What the router was told last, where that differs from the plan for want of memory."""
        self._ward: Ward | None = None
        """Its process, while that is the router's."""
        self._asking: asyncio.Task[None] | None = None
        """The question to the router for a load, until it is answered."""
        self._came = asyncio.Event()
        """Set once that has led to a process."""

    # What the router says (`router.app.Member`).

    def hear(self, news: News, child: Child | None) -> None:
        match news:
            case Came():
                self._inbox.put_nowait(_Came(child))
            case Advanced(share=share):
                if self._attendant is not None:
                    self._attendant.progress = read_share(self._attendant.progress, share)
            case Went():
                self._inbox.put_nowait(news)

    def lose(self, ending: Ending) -> None:
        self._inbox.put_nowait(_Lost(ending))

    def tell_line(self, line: Line, *, generation: int, read_bytes: int) -> None:
        self._log_files.offer(line, generation=-generation, read_bytes=read_bytes)

    async def resume_lines(self) -> tuple[int, int]:
        last = await self._log_files.resume()
        return (-last.generation, last.read_bytes) if last is not None and last.generation < 0 else (0, 0)

    def _see(self, seen: Observation | _Heard) -> None:
        match seen:
            case _Came(child=child):
                self._take(child)
            case Went(exit_code=exit_code, told_to=told_to):
                if told_to and self.instance.state in (State.LOADING, State.READY):
                    self._give_way()
                self._end((exit_code, None))
            case _Lost(ending=ending):
                self._end(ending)
            case _:
                super()._see(seen)

    def _give_way(self) -> None:
        """The router has ended it, and we had not asked for that."""
        other = self._router.wants_room_of(self.instance.model)
        cause = f"{EVICTED}{other}" if other else "evicted"
        self._wanted = Wanted(wanted=False, cause=cause, asked_ns=time.time_ns())
        self.is_wanted = False
        self._see(DrainBegan(cause) if self.instance.state is State.READY else Signalled(cause, kill=False))

    def _end(self, ending: Ending) -> None:
        if self._ward is not None:
            self._ward.end(ending)

    # Its start.

    async def _step(self) -> None:
        if not self._wanted.wanted and self._asking is not None:
            self._asking.cancel()
            self._asking = None
        if self._is_asking and self.instance.state not in ALIVE:
            await self._receive(_NEWS_S)
        else:
            await super()._step()

    @property
    def _is_asking(self) -> bool:
        """The router has been asked for a load, and that has led to nothing yet."""
        return self._asking is not None and not self._asking.done() and not self._came.is_set()

    async def _spawn(self) -> None:
        plan = self._at.plan(self.instance, self._wanted.options)
        obstacle = find_obstacle(self.instance.model, plan) if plan.router else ""
        if obstacle:
            self._at.service.log.info("not served by the router", instance=self.instance.name, why=obstacle)
        if obstacle or not plan.router:
            self._ward = None
            await super()._spawn()
        else:
            await self._ask_router(plan)

    async def _ask_router(self, plan: Plan) -> None:
        await self._end_watchers()
        self._plan, self._ward = plan, None
        self._came.clear()
        try:
            check_files(self.instance.model, plan)
        except Rejected as error:
            self._see(SpawnFailed(error.message))
            return
        self._told = plan.fitted(self._at.memory.context_tokens(self.key))
        self._asking = self._watchers.start(self._load(self._told))

    async def _load(self, plan: Plan) -> None:
        """Until the router has a process for it, or says why there will be none."""
        model = self.instance.model
        while True:
            try:
                await self._router.load(model, plan)
                await self._has_come()
            except RouterLost:
                await asyncio.sleep(_AGAIN_S)
                continue
            except HerdError as error:
                # A process that could not load the model is news of its own, and what it wrote says more.
                if not await self._has_come():
                    self.tell(SpawnFailed(error.message))
            return

    async def _has_come(self) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_NEWS_S):
                await self._came.wait()
        return self._came.is_set()

    def _take(self, child: Child | None) -> None:
        """The router has started its process."""
        self._came.set()
        if child is None or self.instance.state in ALIVE:
            return
        plan = self._plan = self._plan or self._at.plan(self.instance, self._wanted.options)
        router, generation = self._router, self.instance.generation + 1
        self._record = self._make_record(plan, child, generation)
        self._write_record()
        self._see(
            Spawned(
                pid=child.pid,
                process_started_s=child.started_s,
                host=router.host,
                port=router.port,
                path=plan.path,
                options=(self._told or plan).options.said,
                router_generation=router.generation,
            )
        )
        self._attend_ward(child)

    def _make_record(self, plan: Plan, child: Child, generation: int) -> Record:
        """By it the next supervisor knows what runs in the router, and why. It is not to be adopted by itself."""
        at, router = self._at, self._router
        return Record(
            node=at.node,
            model=self.instance.model,
            index=self.instance.index,
            generation=generation,
            mark=render_mark(str(at.data_dir), node=at.node, model=ROUTER, index=0, generation=router.generation),
            boot_id=boot_id(),
            host=router.host,
            port=router.port,
            path=plan.path,
            command=(),
            plan=plan,
            asked=self._wanted.options,
            key_sha256=key_digest(router.key),
            pid=child.pid,
            process_started_s=child.started_s,
        )

    def _attend_ward(self, child: Child) -> Attendant:
        router = self._router
        self._ward = Ward(child, partial(router.unload, self.instance.model))
        # It is asked itself how it is: through the router, only those that use it count.
        return self._attend(
            self._ward, self._router.lines.lines_of(child.port), host=self._router.host, port=child.port
        )

    def _key(self, generation: int) -> str:
        return self._router.key if self._ward is not None else super()._key(generation)

    async def _take_over(self, left: Left) -> None:
        record = left.record
        if record is None or record.command or isinstance(left.found, Adopt):
            await super()._take_over(left)
            return
        model = self.instance.model
        self._plan = record.plan
        if record.plan is not None:
            self._router.keep(model, record.plan)
        await self._router.surveyed.wait()
        child = None
        with contextlib.suppress(RouterLost):
            child = await self._router.find(model)
        if child is None or child.pid != self.instance.pid or self.instance.state not in ALIVE:
            await super()._take_over(left)
            return
        self._record = record
        self._vitals = Vitals(watched_ns=time.time_ns())
        self._at.service.log.info("a model of the router adopted", instance=self.instance.name, pid=child.pid)
        self._attend_ward(child).count_slots()
        if record.plan is not None:
            await self._at.memory.adopt(self, record.plan)

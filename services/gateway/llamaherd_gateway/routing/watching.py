"""Nodes that come and go: whose supervisors are heard, and what is loaded elsewhere when one is not."""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from llamaherd_gateway.routing.attendance import Attendance
from llamaherd_gateway.routing.loading import Loader
from llamaherd_gateway.routing.losses import Losses
from llamaherd_gateway.store import View
from llamaherd_shared.bus import Bus, Recorded
from llamaherd_shared.errors import HerdError
from llamaherd_shared.events.presence import Presence
from llamaherd_shared.model_spec import ModelSpec

LOOK_S: Final = 1.0


class Watching:
    """One gateway's."""

    def __init__(
        self,
        view: View,
        bus: Bus,
        log: Any,
        *,
        attendance: Attendance,
        loader: Loader,
        spec_of: Callable[[str], ModelSpec],
        ready: asyncio.Event,
    ) -> None:
        """`ready`: set once everything is known that happened before; what is lost before that is not told."""
        self._view, self._bus, self._log, self._loader, self._spec_of = view, bus, log, loader, spec_of
        self._ready = ready
        self._attendance = attendance
        self._losses = Losses()
        self._loading: set[asyncio.Task[None]] = set()
        view.on_change.append(self._follow)

    async def run(self) -> None:
        """Listen, until cancelled."""
        watch = await self._bus.watch(self._bus.subjects.all("presence"), self._hear)
        try:
            while True:
                now = time.monotonic()
                if not self._bus.connected:
                    self._attendance.deaf(now)
                nodes = [node.node for node in self._view.fleet.nodes.values() if node.joined]
                away = self._attendance.silent(nodes, now)
                for node in away - self._view.away:
                    self._log.warning("the supervisor of a node is not heard any more", silent_node=node)
                for node in self._view.away - away:
                    self._log.info("the supervisor of a node is heard again", heard_node=node)
                self._view.set_away(away)
                await asyncio.sleep(LOOK_S)
        finally:
            await watch.close()
            for task in self._loading:
                task.cancel()

    def _hear(self, recorded: Recorded) -> None:
        if not recorded.data:
            return
        try:
            presence = msgspec.json.decode(recorded.data, type=Presence)
        except msgspec.MsgspecError:
            return
        if presence.service == "supervisor":
            self._attendance.hear(presence.node, time.monotonic())

    def _follow(self) -> None:
        lost = self._losses.follow(self._view.fleet, self._view.away)
        if not self._ready.is_set():
            return
        for model, gone in lost.items():
            if self._spec_of(model).failover:
                task = asyncio.create_task(self._load(model, gone))
                self._loading.add(task)
                task.add_done_callback(self._loading.discard)

    async def _load(self, model: str, gone: frozenset[str]) -> None:
        self._log.info("a model's node is gone: loading it elsewhere", model=model)
        try:
            instance = await self._loader.ready(model, but=gone)
        except HerdError as error:
            self._log.warning("a model whose node is gone cannot be loaded elsewhere", model=model, why=error.message)
        else:
            self._log.info("a model whose node is gone is loaded elsewhere", model=model, on=instance.node)

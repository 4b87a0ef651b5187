"""One more instance for those that wait: looks at the queues, finds the node, asks its supervisor."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Collection
from typing import Any, Final

from llamaherd_gateway.routing.growth import COMING, Growth
from llamaherd_gateway.routing.placing import Bids, Placing
from llamaherd_gateway.store import View
from llamaherd_shared.commands import Accepted, GrowModel
from llamaherd_shared.errors import HerdError, NoMemory
from llamaherd_shared.model_spec import ModelSpec

LOOK_S: Final = 0.5
_COUNTED: Final = COMING | {"ready"}


class Growing:
    """One gateway's. Several that see the same ask for one: placement is settled between them."""

    def __init__(
        self,
        view: View,
        bus: Bids,
        log: Any,
        *,
        by: str,
        spec_of: Callable[[str], ModelSpec],
        waiting: Callable[[], Collection[str]],
    ) -> None:
        """`waiting`: models for whose slots requests wait here."""
        self._view, self._bus, self._log, self._waiting = view, bus, log, waiting
        self._placing = Placing(view, bus, by=by)
        self._growth = Growth(spec_of)

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            for model in self._growth.due(self._waiting(), self._states(), time.monotonic()):
                await self._grow(model)
            await asyncio.sleep(LOOK_S)

    def _states(self) -> dict[str, list[str]]:
        states: defaultdict[str, list[str]] = defaultdict(list)
        for instance in self._view.fleet.instances.values():
            if instance.node not in self._view.away:
                states[instance.model].append(instance.state)
        return states

    async def _grow(self, model: str) -> None:
        try:
            node = await self._placing.choose_more(model)
            if node is not None:
                await self._ask(node, model)
        except NoMemory as error:
            self._log.info("requests wait, and no node has room for one more instance", model=model, why=error.message)
            self._growth.asked(model, time.monotonic(), refused=True)
        except HerdError as error:
            self._log.debug("one more instance was refused", model=model, why=error.message)
            self._growth.asked(model, time.monotonic())
        else:
            self._growth.asked(model, time.monotonic())

    async def _ask(self, node: str, model: str) -> None:
        instances = self._view.fleet.instances.values()
        beside = sum(
            instance.node == node and instance.model == model and instance.state in _COUNTED for instance in instances
        )
        subject = self._bus.subjects.command("supervisor", "grow", node=node)
        await self._bus.request(subject, GrowModel(model=model, beside=beside), Accepted)
        self._log.info("requests wait: one more instance is started", model=model, node=node)

"""Where facts go: appended one by one, in the order they were recorded, whatever the bus does meanwhile."""

import asyncio
import contextlib
from typing import Final

from llamaherd_shared.bus import Bus, PublishRefused
from llamaherd_shared.errors import Conflict, HerdError, Unavailable
from llamaherd_shared.events import Event
from llamaherd_shared.log import structlog
from llamaherd_shared.service import new_id

_SETTLE_S: Final = 1.0
"""How long a command waits for facts that are on their way to the log."""
_APPEND_AGAIN_S: Final = 1.0
_log = structlog.get_logger("llamaherd.supervisor")


class SecondSupervisor(HerdError):
    """Somebody else writes the facts of this node."""

    kind = "conflict"


class Journal:
    """Appends facts in the order they were recorded, each behind the last one of its subject (compare-and-set)."""

    def __init__(self, bus: Bus, *, node: str) -> None:
        self._bus, self._node = bus, node
        self._queue: asyncio.Queue[tuple[str, Event, str, asyncio.Event]] = asyncio.Queue()
        self._unstored: dict[str, asyncio.Event] = {}
        """Of each subject about which facts wait: set when the last of them is stored."""
        self._last: dict[str, int] = {}
        self._troubled = False

    def record(self, subject: str, event: Event) -> None:
        """Queue a fact; returns at once. While the bus is away facts wait here, in order."""
        stored = self._unstored[subject] = asyncio.Event()
        self._queue.put_nowait((subject, event, new_id(), stored))

    @property
    def waiting(self) -> int:
        return self._queue.qsize()

    async def sequence(self, subject: str) -> int:
        """Of the subject's last fact, once what was recorded about it is stored; 0 when it has none."""
        if (stored := self._unstored.get(subject)) is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SETTLE_S):
                    await stored.wait()
        return await self._sequence(subject)

    async def _sequence(self, subject: str) -> int:
        if subject not in self._last:
            self._last.setdefault(subject, await self._bus.last_sequence(subject))
        return self._last[subject]

    async def run(self) -> None:
        """Append, for ever. Raises `SecondSupervisor` when another one has written about this node."""
        while True:
            subject, event, msg_id, stored = await self._queue.get()
            await self._append(subject, event, msg_id)
            stored.set()
            if self._unstored[subject] is stored:
                del self._unstored[subject]
            self._queue.task_done()

    async def _append(self, subject: str, event: Event, msg_id: str) -> None:
        expected = await self._sequence(subject)
        while True:
            try:
                self._last[subject] = await self._bus.append(subject, event, msg_id=msg_id, expected=expected)
                self._troubled = False
                return
            except Conflict as error:
                raise SecondSupervisor(
                    f"another supervisor writes about node {self._node}: give each host its own name (`node`)"
                ) from error
            except (Unavailable, PublishRefused) as error:
                if not self._troubled:
                    self._troubled = True
                    _log.error("facts wait for the bus to take them", why=error.message)
                await asyncio.sleep(_APPEND_AGAIN_S)

    async def flush(self, timeout_s: float) -> bool:
        """Wait until all that was recorded is stored; `False` when time ran out first."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._queue.join()
            return True
        return False

"""A few at a time: what a hundred instances have to do in the same moment would hold the event loop for all of it."""

import asyncio
from collections import deque
from typing import Final

AT_ONCE: Final = 4
"""Few enough that together they hold the loop for a moment only (`just bench-storm`)."""


class Turns:
    """Use from one event loop."""

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self._at_once = at_once
        self._taken = 0
        """In this turn of the event loop."""
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def take(self) -> None:
        """Go on at once, or in a later turn of the event loop when enough others go on in this one."""
        loop = asyncio.get_running_loop()
        if self._taken == self._at_once:
            waits = loop.create_future()
            self._waiting.append(waits)
            await waits
            return
        if not self._taken:
            loop.call_soon(self._begin_anew)
        self._taken += 1

    def _begin_anew(self) -> None:
        self._taken = 0
        while self._waiting and self._taken < self._at_once:
            waits = self._waiting.popleft()
            if not waits.done():
                waits.set_result(None)
                self._taken += 1
        if self._taken:
            asyncio.get_running_loop().call_soon(self._begin_anew)

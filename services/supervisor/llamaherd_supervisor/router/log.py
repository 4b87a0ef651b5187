"""The log of a router, told apart: what it says itself, and what the process of each model says."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final, Protocol

from llamaherd_shared.events.line import Level, Line
from llamaherd_shared.service import Service
from llamaherd_shared.upstream_key import ROUTER
from llamaherd_supervisor import instance_files
from llamaherd_supervisor.adoption import Record
from llamaherd_supervisor.instance_log import InstanceLog
from llamaherd_supervisor.levels import level_of_line
from llamaherd_supervisor.router.lines import Ports, sort_line
from llamaherd_supervisor.tail import LAST_LINES, Tail

_UNREAD_LINES: Final = 1000
"""Kept for whoever follows a load; all lines are told anyway."""
_ENDED_S: Final = 1.0
"""How long the last lines of a process may take to come through the router."""


class Teller(Protocol):
    """Tells the lines of one model's instance."""

    def tell_line(self, line: Line, *, generation: int, read_bytes: int) -> None: ...

    async def resume_lines(self) -> tuple[int, int]:
        """Up to where lines are told already: the router's generation and a place in its log; (0, 0): nobody knows."""


class ChildLines:
    """The lines of one process of a router (`LineSource`)."""

    def __init__(self) -> None:
        self._unread: deque[str] = deque(maxlen=_UNREAD_LINES)
        self._last: deque[str] = deque(maxlen=LAST_LINES)
        self._ended = asyncio.Event()
        self.level: Level = "info"

    @property
    def read_bytes(self) -> int:
        return 0

    def add(self, text: str, *, is_new: bool) -> None:
        self._last.append(text)
        if is_new:
            self._unread.append(text)

    def end(self) -> None:
        self._ended.set()

    @property
    def has_ended(self) -> bool:
        return self._ended.is_set()

    def read(self) -> list[str]:
        lines = list(self._unread)
        self._unread.clear()
        return lines

    async def finish(self) -> tuple[str, ...]:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ENDED_S):
                await self._ended.wait()
        return tuple(self._last)


class RouterLog(InstanceLog):
    """Opens the log files of the router."""

    def __init__(
        self,
        service: Service,
        folder: Path,
        *,
        max_bytes: int,
        teller_of: Callable[[str], Teller],
        hear: Callable[[str], None],
    ) -> None:
        """`hear` gets the router's own lines."""
        super().__init__(service, folder, ROUTER, 0, max_bytes=max_bytes)
        self._teller_of, self._hear = teller_of, hear
        self._children: dict[int, ChildLines] = {}
        self._told: dict[str, int] = {}
        """Model (empty: the router itself) -> byte up to which the lines of the next file are told already."""
        self.models: Collection[str] = ()
        """Those whose lines may be told already."""

    def lines_of(self, port: int) -> ChildLines:
        """Of the newest process on this port."""
        lines = self._children.get(port)
        if lines is None or lines.has_ended:
            lines = self._children[port] = ChildLines()
        return lines

    def end_all(self) -> None:
        """The router is gone, and all of its lines have been read."""
        for lines in self._children.values():
            lines.end()

    async def reopen(self, record: Record | None, *, generation: int) -> Tail | None:
        """From its beginning, as only that tells whose lines are whose; none is told twice."""
        last = await self.resume()
        if record is None:
            return None
        path = instance_files.log_path(self._folder, ROUTER, 0, record.generation)
        if not path.exists():
            return None
        places = {model: await self._teller_of(model).resume_lines() for model in self.models}
        places[""] = (last.generation, last.read_bytes) if last is not None else (0, 0)
        self._told = {
            model: place if spawn == record.generation else record.log_bytes for model, (spawn, place) in places.items()
        }
        return self._tail(path, record.generation, 0)

    def _forget(self, ports: Ports) -> None:
        """Processes that have ended and have a successor."""
        self._children = {port: lines for port, lines in self._children.items() if port in ports or not lines.has_ended}

    def _tail(self, path: Path, generation: int, start: int | None) -> Tail:
        ports: Ports = {}
        told, self._told = self._told, {}
        self._children.clear()

        def offer(line: Line, read_bytes: int) -> None:
            nonlocal ports
            ports, found = sort_line(ports, line.text)
            is_new = read_bytes > told.get(found.model, 0)
            if found.model:
                child = self.lines_of(found.port)
                child.add(found.text, is_new=is_new)
                child.level = level_of_line(found.text, child.level)
                line = Line(at_ns=line.at_ns, level=child.level, text=found.text)
                if is_new:
                    self._teller_of(found.model).tell_line(line, generation=generation, read_bytes=read_bytes)
            elif is_new:
                self._lines.offer(line, generation=generation, read_bytes=read_bytes)
                self._hear(found.text)
            if found.ends and found.port in self._children:
                self._children[found.port].end()
                self._forget(ports)

        return Tail(path, offer, max_bytes=self._max_bytes, start=start)

"""The lines of one instance over all its spawns and supervisors: from a file per spawn to the bus, each once."""

from pathlib import Path
from typing import Final

import msgspec

from llamaherd_shared.errors import Unavailable
from llamaherd_shared.events.line import Line, LinePack, decode_lines
from llamaherd_shared.service import Service
from llamaherd_shared.streams import LOGS
from llamaherd_supervisor import instance_files
from llamaherd_supervisor.adoption import Record, find_place
from llamaherd_supervisor.tail import Tail

_LAST_PACK_S: Final = 5.0
"""How long the bus may take to say which lines it has."""


class InstanceLog:
    """Opens the log files of an instance."""

    def __init__(self, service: Service, folder: Path, model: str, index: int, *, max_bytes: int) -> None:
        self._service, self._folder, self._model, self._index = service, folder, model, index
        self._max_bytes = max_bytes
        self._unit = f"{model}/{index}"
        self._lines = service.lines("llama-server", self._unit)

    def open(self, generation: int) -> Tail:
        """Make the file of a new spawn and follow it. Raises `Unavailable`."""
        path = instance_files.open_log(self._folder, self._model, self._index, generation)
        return self._tail(path, generation, None)

    async def reopen(self, record: Record | None, *, generation: int) -> Tail | None:
        """Follow the newest file behind the last line that is on the bus; `None` when there is no file.

        What stands in older files and is not on the bus is told first. When neither bus nor record know how far
        the lines were read, only new ones are.
        """
        last = await self.resume()
        newest = max(generation, record.generation if record is not None else 0)
        first, place = find_place(last, record, newest=newest) or (newest, None)
        tail = None
        for number in range(first, newest + 1):
            path = instance_files.log_path(self._folder, self._model, self._index, number)
            if path.exists():
                if tail is not None:
                    await tail.finish()
                tail = self._tail(path, number, place if number == first else 0)
        return tail

    async def resume(self) -> LinePack | None:
        """Number the lines as those of before; returns the last pack of them that is on the bus."""
        last = await self._last_pack()
        if last is not None:
            self._lines.resume(last)
        return last

    def offer(self, line: Line, *, generation: int, read_bytes: int) -> None:
        """Tell a line that stands in another file (`LinePack.generation`)."""
        self._lines.offer(line, generation=generation, read_bytes=read_bytes)

    def flush(self) -> None:
        self._lines.flush()

    def _tail(self, path: Path, generation: int, start: int | None) -> Tail:
        def offer(line: Line, read_bytes: int) -> None:
            self._lines.offer(line, generation=generation, read_bytes=read_bytes)

        return Tail(path, offer, max_bytes=self._max_bytes, start=start)

    async def _last_pack(self) -> LinePack | None:
        bus, node = self._service.bus, self._service.common.node
        try:
            stored = await bus.newest(LOGS, bus.subjects.log(node, "llama-server", self._unit), timeout_s=_LAST_PACK_S)
            return None if stored is None else decode_lines(stored.data)
        except (Unavailable, msgspec.MsgspecError):
            return None

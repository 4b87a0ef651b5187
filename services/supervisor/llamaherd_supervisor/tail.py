"""Follows the log file of an instance: every line to the bus, the last ones kept for the fact about its end."""

import asyncio
import contextlib
import ctypes
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from llamaherd_shared.events.line import Level, Line
from llamaherd_supervisor.levels import level_of_line

_CHUNK_BYTES: Final = 256 * 1024
_FIRST_LOOK_BYTES: Final = 4096
"""Mostly there is nothing new, and room for a whole chunk would be made at every look."""
_LINE_BYTES: Final = 16 * 1024
"""A longer line is cut into pieces."""
_RECALLED_BYTES: Final = 64 * 1024
"""Looked at before the start, for the last lines of an instance that is adopted or was found dead."""
LAST_LINES: Final = 200
"""Kept, to tell why an instance ended: an assertion prints the stack of every thread behind it."""

_KEEP_SIZE: Final = 1
_PUNCH_HOLE: Final = 2
"""`FALLOC_FL_KEEP_SIZE`, `FALLOC_FL_PUNCH_HOLE` (fallocate(2))."""


class LineSource(Protocol):
    """Where the lines of a process come from."""

    @property
    def read_bytes(self) -> int:
        """Where in its file the last line that was passed on ends; 0 when that is not for its owner to know."""

    def read(self) -> list[str]:
        """The lines that have come since the last look."""

    async def finish(self) -> tuple[str, ...]:
        """Take everything that is left; returns the newest lines, oldest first."""


class Tail:
    """Reads what was appended since the last look. The file belongs to the writer; only `_shorten` changes it."""

    def __init__(
        self, path: Path, offer: Callable[[Line, int], None], *, max_bytes: int, start: int | None = None
    ) -> None:
        """Begins at byte `start`, by default at the present end. `offer` gets each line and where it ends."""
        self.path, self._offer, self._max_bytes = path, offer, max_bytes
        self._file = path.open("r+b", buffering=0)
        size = self._file.seek(0, os.SEEK_END)
        self._position = size if start is None else self._behind_hole(min(start, size))
        self._freed = 0
        self._rest = b""
        self._level: Level = "info"
        self._last: deque[str] = deque(maxlen=LAST_LINES)
        """Those before the start are among them."""
        self._recall()

    @property
    def read_bytes(self) -> int:
        """Where the last line that was passed on ends."""
        return self._position - len(self._rest)

    def read(self) -> list[str]:
        """Take and pass on the lines that are complete; at most a chunk, so that a flood does not block the loop."""
        end = self.read_bytes
        data = os.pread(self._file.fileno(), _FIRST_LOOK_BYTES, self._position)
        if not data:
            self._shorten()
            return []
        if len(data) == _FIRST_LOOK_BYTES:
            data += os.pread(self._file.fileno(), _CHUNK_BYTES - len(data), self._position + len(data))
        self._position += len(data)
        *whole, self._rest = (self._rest + data).split(b"\n")
        texts = []
        for raw in whole:
            texts += self._take(raw, end, end + len(raw) + 1)
            end += len(raw) + 1
        if len(self._rest) > _LINE_BYTES:
            texts += self._take(self._rest, end, self._position)
            self._rest = b""
        return texts

    async def finish(self) -> tuple[str, ...]:
        """Take everything that is left, the last line also without its end; returns the newest lines, oldest first."""
        while self._position < os.fstat(self._file.fileno()).st_size:
            self.read()
            await asyncio.sleep(0)
        if self._rest:
            self._take(self._rest, self.read_bytes, self._position)
        self._file.close()
        return tuple(self._last)

    def _take(self, raw: bytes, begin: int, end: int) -> list[str]:
        texts = []
        for start in range(0, max(1, len(raw)), _LINE_BYTES):
            text = raw[start : start + _LINE_BYTES].decode("utf-8", "replace").rstrip()
            self._level = level_of_line(text, self._level)
            if text:
                self._last.append(text)
                until = end if start + _LINE_BYTES >= len(raw) else begin + start + _LINE_BYTES
                self._offer(Line(at_ns=time.time_ns(), level=self._level, text=text), until)
                texts.append(text)
        return texts

    def _recall(self) -> None:
        """Know the lines that stand before the start, without passing them on."""
        begin = max(0, self._position - _RECALLED_BYTES)
        self._file.seek(begin)
        raw = self._file.read(self._position - begin).split(b"\n")
        for line in raw[1 if begin else 0 :]:
            if text := line.decode("utf-8", "replace").strip("\0").rstrip():
                self._level = level_of_line(text, self._level)
                self._last.append(text)

    def _behind_hole(self, start: int) -> int:
        """The first byte from `start` on that was not freed."""
        with contextlib.suppress(OSError, AttributeError):
            return os.lseek(self._file.fileno(), start, os.SEEK_DATA)
        return start

    def _shorten(self) -> None:
        """Free the beginning of a file that has grown too long; as much as may stay does.

        Lines keep their places in it. Where a file system cannot free a part, all of it is emptied once all was
        read: a line written at that very moment is lost.
        """
        if self.read_bytes - self._freed <= 2 * self._max_bytes:
            return
        until = self.read_bytes - self._max_bytes
        if _punch_hole(self._file.fileno(), until):
            self._freed = until
        elif not self._rest and os.fstat(self._file.fileno()).st_size == self._position:
            os.truncate(self.path, 0)
            self._position = self._freed = 0


def _punch_hole(file: int, until: int) -> bool:
    """Give the bytes before `until` back to the file system; `False` where that cannot be done."""
    # In 32 bits the offsets are of another size; elsewhere there is no such call.
    if sys.platform != "linux" or sys.maxsize < 2**32:
        return False
    mode = ctypes.c_int(_KEEP_SIZE | _PUNCH_HOLE)
    return bool(ctypes.CDLL(None).fallocate(file, mode, ctypes.c_int64(0), ctypes.c_int64(until)) == 0)

"""Follows the log file of an instance: every line to the bus, the last ones kept for the fact about its end."""

import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

from llamaherd_shared.events.line import Level, Line
from llamaherd_supervisor.levels import level_of_line

_CHUNK_BYTES: Final = 256 * 1024
_LINE_BYTES: Final = 16 * 1024
"""A longer line is cut into pieces."""
LAST_LINES: Final = 20


class Tail:
    """Reads what was appended since the last look. The file belongs to the writer; only `shorten` changes it."""

    def __init__(self, path: Path, offer: Callable[[Line], None], *, max_bytes: int) -> None:
        """Starts at the file's present end."""
        self._path, self._offer, self._max_bytes = path, offer, max_bytes
        self._file = path.open("rb")
        self._position = self._file.seek(0, os.SEEK_END)
        self._rest = b""
        self._level: Level = "info"
        self._last: deque[str] = deque(maxlen=LAST_LINES)

    @property
    def last_lines(self) -> tuple[str, ...]:
        """The newest lines since the start, oldest first."""
        return tuple(self._last)

    def read(self) -> list[str]:
        """Take and pass on the lines that are complete; at most a chunk, so that a flood does not block the loop."""
        self._file.seek(self._position)
        data = self._file.read(_CHUNK_BYTES)
        if not data:
            self._shorten()
            return []
        self._position += len(data)
        *whole, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LINE_BYTES:
            whole, self._rest = [*whole, self._rest], b""
        return [line for raw in whole for line in self._take(raw)]

    def finish(self) -> None:
        """Take everything that is left, the last line also without its end."""
        while self.read():
            pass
        if self._rest:
            self._take(self._rest)
        self._file.close()

    def _take(self, raw: bytes) -> list[str]:
        texts = []
        for start in range(0, max(1, len(raw)), _LINE_BYTES):
            text = raw[start : start + _LINE_BYTES].decode("utf-8", "replace").rstrip()
            self._level = level_of_line(text, self._level)
            if text:
                self._last.append(text)
                self._offer(Line(at_ns=time.time_ns(), level=self._level, text=text))
                texts.append(text)
        return texts

    def _shorten(self) -> None:
        """Empty a file that has grown too long: all of it was read, and the writer appends (O_APPEND)."""
        if self._position > self._max_bytes and os.fstat(self._file.fileno()).st_size == self._position:
            os.truncate(self._path, 0)
            self._position = 0

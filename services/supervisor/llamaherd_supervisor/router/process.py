"""Operating system side of a router and of the processes it starts."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

import msgspec
import psutil

from llamaherd_shared.errors import Unavailable
from llamaherd_supervisor.process import Ending, Process

_WORD: Final = "--port"


class Child(msgspec.Struct, frozen=True):
    """The process of one model."""

    pid: int
    """0 when it was gone before anybody looked."""
    started_s: float
    port: int


def find_child(router_pid: int, port: int) -> Child:
    """The process below the router that was told to listen there."""
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(router_pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                if _WORD in words[:-1] and words[words.index(_WORD) + 1] == str(port):
                    return Child(process.pid, process.create_time(), port)
    return Child(0, 0.0, port)


class Ward(Process):
    """A process that is the router's to start and to end. Only when that does not work do we kill it."""

    def __init__(self, child: Child, unload: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._gone: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        super().__init__(child.pid, child.started_s, lambda: asyncio.shield(self._gone), self._gone.result)
        self._unload = unload
        self._unloading: asyncio.Task[None] | None = None

    def end(self, ending: Ending) -> None:
        """The router has told how it ended. Only the first word counts."""
        if not self._gone.done():
            self._gone.set_result(ending)

    async def clear(self) -> Ending:
        self.is_gone = True
        return self._reap()

    def send(self, *, kill: bool) -> None:
        if not kill:
            self._unloading = asyncio.create_task(self._unload())
            return
        with contextlib.suppress(psutil.Error, OSError):
            process = psutil.Process(self.pid)
            if self.pid and abs(process.create_time() - self.started_s) < 1.0:
                process.send_signal(signal.SIGKILL)


def write_preset(path: Path, text: str) -> None:
    """Replace the preset as a whole. Raises `Unavailable`."""
    part = path.with_name(f".{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text)
        os.replace(part, path)
    except OSError as error:
        raise Unavailable(f"cannot write the router's preset {path}: {error.strerror}") from error

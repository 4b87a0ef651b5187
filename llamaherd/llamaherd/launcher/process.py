"""One child process that is kept running: started, watched, started again, stopped with a deadline."""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
import psutil

from llamaherd.herd import Started
from llamaherd.launcher.store import identify, last_lines, log_file
from llamaherd.restarts import GiveUp, next_start

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_LINUX: Final = sys.platform == "linux"
INSTANCE_VARIABLE: Final = "LLAMAHERD_INSTANCE"
"""By it a supervisor, too, knows what it has started: `<data folder>|...` (its `command_line.py`)."""
_LIBC: Final = ctypes.CDLL(None, use_errno=True) if _LINUX else None


class ChildSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What to run."""

    name: str
    command: Sequence[str]
    environ: Mapping[str, str]
    stop_timeout_s: float = 5.0
    """Between SIGTERM and SIGKILL."""
    dies_with_us: bool = False
    """Let the kernel end it when the launcher is killed (Linux), for a program that cannot notice by itself."""


class Gone(msgspec.Struct, frozen=True, kw_only=True):
    """A child died, or was given up."""

    name: str
    sentence: str
    gave_up: bool
    last_lines: list[str]


class Child:
    """Keeps one process running until `stop`."""

    def __init__(
        self, spec: ChildSpec, data_dir: Path, *, changed: Callable[[], None], gone: Callable[[Gone], None]
    ) -> None:
        self.spec = spec
        self.started: Started | None = None
        """The running process; `None` between two of them."""
        self.gave_up: Gone | None = None
        self._data_dir, self._changed, self._gone = data_dir, changed, gone
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()

    @property
    def log_file(self) -> Path:
        return self._data_dir / "logs" / f"{self.spec.name}.log"

    async def start(self) -> None:
        """Start it and keep it running from now on. Raises `OSError` when it cannot be executed at all."""
        await self._spawn()
        self._keeper = asyncio.create_task(self._keep(), name=f"keep {self.spec.name}")

    async def stop(self, *, hurry: asyncio.Event) -> None:
        """SIGTERM, then SIGKILL when its time is over or `hurry` is set. Returns when it is gone."""
        self._stopping.set()
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            ended = asyncio.ensure_future(process.wait())
            hurried = asyncio.ensure_future(hurry.wait())
            await asyncio.wait({ended, hurried}, timeout=self.spec.stop_timeout_s, return_when=asyncio.FIRST_COMPLETED)
            hurried.cancel()
            if not ended.done():
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            await ended
        if self._keeper is not None:
            await self._keeper
        self.started = None

    async def _spawn(self) -> None:
        with log_file(self._data_dir, self.spec.name).open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self.spec.command,
                env=self.spec.environ,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Its own session: Ctrl-C reaches the launcher alone, which stops the children in order.
                start_new_session=True,
                preexec_fn=_die_with_parent if self.spec.dies_with_us and _LINUX else None,
            )
        with contextlib.suppress(psutil.NoSuchProcess):
            self.started = identify(self.spec.name, self._process.pid)
        self._changed()

    async def _keep(self) -> None:
        quick_crashes = 0
        while True:
            born = time.monotonic()
            ended = await self._ended()
            self.started = None
            if self._stopping.is_set():
                return
            step = next_start(exit_code=ended, lived_s=time.monotonic() - born, quick_crashes=quick_crashes)
            lines = last_lines(self.log_file)
            if isinstance(step, GiveUp):
                sentence = f"{self.spec.name} {step.reason} and is not started again; see {self.log_file}"
                self.gave_up = Gone(name=self.spec.name, sentence=sentence, gave_up=True, last_lines=lines)
                self._changed()
                self._gone(self.gave_up)
                return
            quick_crashes = step.quick_crashes
            sentence = f"{self.spec.name} {describe_exit(ended)}; starting it again in {step.after_s:g} s"
            self._gone(Gone(name=self.spec.name, sentence=sentence, gave_up=False, last_lines=lines))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), step.after_s)
                return
            # A process that cannot even be started (disk full, no more processes) counts as one that ended at once.
            with contextlib.suppress(OSError):
                await self._spawn()
                if self._stopping.is_set() and self._process is not None:
                    # `stop` came in between and saw only the one before.
                    self._process.kill()

    async def _ended(self) -> int:
        """Exit code of the current process, once it has ended."""
        assert self._process is not None
        return await self._process.wait()


def describe_exit(exit_code: int) -> str:
    """Completes `<name> ...`; a negative code is a signal, as in `subprocess`."""
    if exit_code >= 0:
        return f"ended with exit code {exit_code}"
    try:
        return f"was ended by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"was ended by signal {-exit_code}"


def adopt_orphans() -> None:
    """Make processes that lose their parent below us our children (Linux), so that none escapes the last sweep."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap_orphans(known: set[int], before: set[int]) -> set[int]:
    """Collect orphans that have ended; returns those that were not collected yet: `before` of the next call.

    `known` are the children that asyncio waits for. One it has just started may not be known yet: what has ended is
    left to it for the time between two calls.
    """
    if not _has_ended_child():
        return set()
    ended = set()
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if child.pid not in known and child.status() == psutil.STATUS_ZOMBIE:
                ended.add(child.pid)
    for pid in ended & before:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    return ended - before


def _has_ended_child() -> bool:
    """Costs nothing, where a look at all processes takes milliseconds."""
    try:
        return _LIBC is not None and os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False


def find_instances(data_dir: Path) -> list[psutil.Process]:
    """The llama-servers that supervisors with this data folder have started, whoever their parent is by now."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            mark = process.environ().get(INSTANCE_VARIABLE, "")
            if mark.startswith(f"{data_dir}|") and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def sweep(processes: Sequence[psutil.Process], *, patience_s: float) -> list[int]:
    """End these processes and what they started: SIGTERM, after `patience_s` SIGKILL. Returns the ids of all."""
    everyone: list[psutil.Process] = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            everyone += [process, *process.children(recursive=True)]
    # Once each: a second SIGTERM makes llama-server end at once.
    everyone = list(dict.fromkeys(everyone))
    for process in everyone:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, alive = psutil.wait_procs(everyone, timeout=patience_s)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=2)
    return [process.pid for process in everyone]


def _die_with_parent() -> None:
    # Between fork and exec: nothing but the one system call.
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)

"""Operating system side of an instance: start, watch, signal, find what an earlier supervisor left behind."""

import asyncio
import contextlib
import math
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import psutil

from llamaherd_supervisor.adoption import Running
from llamaherd_supervisor.command_line import INSTANCE_VARIABLE
from llamaherd_supervisor.spawning import spawn

_SAME_START_S: Final = 1.5
"""Two looks at one process may differ in its start time by so much when the clock is corrected in between."""
_POLL_S: Final = 0.05
_WATCH_S: Final = 0.2
"""Between two looks at a process where the kernel does not tell of its end (pidfd_open(2))."""
KILLED_S: Final = 5.0
"""From SIGKILL until a process counts as one that cannot be killed."""

_PORTS_REMEMBERED: Final = 1000
_KILLS_COUNTED_S: Final = 1.0

Ending = tuple[int | None, str | None]
"""(exit code, name of the signal): one of them is `None`; both, where nobody can tell."""


class CannotSpawn(Exception):
    """The program could not be started at all. `str()` is one sentence."""


class Process:
    """One running llama-server in a session of its own, so that a Ctrl-C in the terminal does not reach it.

    It leads a process group: what a wrapper script started belongs to it, and is stopped with it.
    """

    def __init__(
        self, pid: int, started_s: float, ended: Callable[[], Awaitable[object]], reap: Callable[[], Ending]
    ) -> None:
        """`ended`: waits for its end; `reap`: says then how it ended."""
        self.pid, self.started_s, self._ended, self._reap = pid, started_s, ended, reap
        self._asked = False
        """SIGTERM was sent: what is left of the group may take its time."""
        self._leader_gone = False
        self.is_gone = False
        self._seen: psutil.Process | None = None
        """Kept, because making one reads several files."""

    @classmethod
    async def spawn(
        cls, program: str, arguments: Sequence[str], environment: Mapping[str, str], *, log_path: Path
    ) -> "Process":
        """Start it with its output appended to a file: a pipe would tie its life to ours. Raises `CannotSpawn`.

        In a thread: whoever starts a process waits until the kernel has found a processor for it, which held the event
        loop for 300 ms when thirty were to be started on a busy machine.
        """
        pid = await asyncio.to_thread(_start, program, arguments, environment, log_path)
        return cls(pid, _started_s(pid) or time.time(), partial(_wait_until_gone, pid), partial(_reap, pid))

    @classmethod
    def adopt(cls, running: Running, *, asked: bool) -> "Process":
        """Watch and signal a process that an earlier supervisor spawned; `asked` when it was sent SIGTERM already."""

        process = cls(running.pid, running.started_s, partial(_wait_until_gone, running.pid), lambda: (None, None))
        process._asked = asked
        return process

    async def ended(self) -> None:
        """Return when it has ended, which says nothing of what it has started."""
        await self._ended()

    async def clear(self) -> Ending:
        """How it `ended`, once nothing of its group is left. What it leaves when nobody asked it to stop is killed."""
        ending = self._reap()
        self._leader_gone = True
        if self._asked:
            await _poll(lambda: not _has_group(self.pid), every_s=_POLL_S)
        elif _has_group(self.pid):
            _signal_group(self.pid, signal.SIGKILL)
            await _poll(lambda: not _has_group(self.pid), every_s=_POLL_S, within_s=KILLED_S)
        self.is_gone = True
        return ending

    def send(self, *, kill: bool) -> None:
        """SIGTERM, or SIGKILL, to the process and its children. Nothing happens when all are gone already."""
        self._asked = True
        if not self._leader_gone or _has_group(self.pid):
            _signal_group(self.pid, signal.SIGKILL if kill else signal.SIGTERM)

    def clients(self, port: int) -> int:
        """How many are connected to this port of it, or of what it has started; 0 when nobody can tell."""
        count = 0
        with contextlib.suppress(psutil.Error):
            leader = psutil.Process(self.pid)
            for process in (leader, *leader.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    sockets = process.net_connections("tcp")
                    count += sum(each.status == psutil.CONN_ESTABLISHED and each.laddr.port == port for each in sockets)
        return count

    def resident_bytes(self) -> int:
        """Memory it occupies, mapped weights included; 0 when it is gone."""
        try:
            if self._seen is None:
                self._seen = psutil.Process(self.pid)
            return int(self._seen.memory_info().rss)
        except psutil.Error:
            return 0

    def growth_bytes(self) -> tuple[int, int]:
        """Memory that its group occupies, and what that has read; 0 where nobody can tell."""
        resident_bytes = read_bytes = 0
        for pid in _members(self.pid):
            # macOS does not tell what a process has read.
            with contextlib.suppress(psutil.Error, AttributeError):
                process = psutil.Process(pid)
                resident_bytes += process.memory_info().rss
                counts = process.io_counters()
                # Mapped files are only in the first, what the page cache had is only in the second.
                read_bytes += counts.read_bytes + counts.read_chars
        return resident_bytes, read_bytes


def _start(program: str, arguments: Sequence[str], environment: Mapping[str, str], log_path: Path) -> int:
    try:
        log = os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    except OSError as error:
        raise CannotSpawn(f"cannot write the log {log_path}: {error.strerror}") from error
    try:
        return spawn(program, arguments, environment, output=log)
    except OSError as error:
        raise CannotSpawn(f"cannot start {program}: {error.strerror or error}") from error
    finally:
        os.close(log)


def _reap(pid: int) -> Ending:
    """How a child of ours ended."""
    try:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:
        # Whoever started us has SIGCHLD ignored: the kernel keeps no endings.
        return None, None
    return (code, None) if code >= 0 else (None, _signal_name(-code))


async def _wait_until_gone(pid: int) -> None:
    """Wait for the end of a process, our child or not; at once when it is gone already."""
    try:
        process = psutil.Process(pid)
    except psutil.Error:
        return
    watched = _open_pidfd(pid)
    if watched is None:
        await _poll(lambda: not _is_running(process), every_s=_WATCH_S)
    elif _is_running(process):
        await _wait_for_pidfd(watched)
    else:
        # The pid has become another's between the two calls.
        os.close(watched)


async def _wait_for_pidfd(watched: int) -> None:
    """Wait for the end of the process and close the descriptor."""
    gone, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.add_reader(watched, gone.set)
    try:
        await gone.wait()
    finally:
        loop.remove_reader(watched)
        os.close(watched)


def _open_pidfd(pid: int) -> int | None:
    """`None` where there is no such thing: an old kernel, a sandbox, another system."""
    with contextlib.suppress(OSError):
        return os.pidfd_open(pid) if sys.platform == "linux" else None
    return None


async def _poll(condition: Callable[[], bool], *, every_s: float, within_s: float = math.inf) -> None:
    """Wait until it holds, or until time is over."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return
        await asyncio.sleep(every_s)


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
        # A stopped process (SIGSTOP, a debugger) hears SIGTERM only when it goes on.
        os.killpg(group, signal.SIGCONT)


def _has_group(group: int) -> bool:
    """Whether a living process is in this process group; zombies hold neither memory nor port."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    for pid in _members(group):
        with contextlib.suppress(psutil.Error):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                return True
    return False


def _members(group: int) -> list[int]:
    """Processes of this group. Whose child a process is would take reading a file for every one of the machine."""
    members = []
    for pid in psutil.pids():
        with contextlib.suppress(OSError):
            if os.getpgid(pid) == group:
                members.append(pid)
    return members


def free_port(host: str) -> int:
    """A port nobody listens on now. Somebody may before llama-server does: then it exits and is tried again."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


class OomKills:
    """How many processes the kernel has killed for want of memory since it started; 0 where it does not tell."""

    def __init__(self) -> None:
        self._count = 0
        self._counted_at = -math.inf

    def now(self) -> int:
        self._counted_at = time.monotonic()
        with contextlib.suppress(OSError):
            _, found, rest = Path("/proc/vmstat").read_bytes().partition(b"\noom_kill ")
            self._count = int(rest.partition(b"\n")[0]) if found else 0
        return self._count

    def lately(self) -> int:
        """A second ago or less: one look serves all instances, as the kernel adds up its counters for each."""
        return self._count if time.monotonic() - self._counted_at < _KILLS_COUNTED_S else self.now()


class Ports:
    """Free ports, none twice: before a llama-server listens on the one it was given nobody else knows of that.

    Of a hundred that are asked for one after the other the kernel gives one twice in every third case.
    """

    def __init__(self, host: str) -> None:
        self._host = host
        self._given: deque[int] = deque(maxlen=_PORTS_REMEMBERED)

    def take(self) -> int:
        while (port := free_port(self._host)) in self._given:
            pass
        self._given.append(port)
        return port


def boot_id() -> str:
    """Changes with every start of the machine; empty where the system has no such thing."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def look(pids: Collection[int], *, data_dir: str) -> list[Running]:
    """The living processes with a mark of this data folder, and those with one of these pids."""
    found = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        with contextlib.suppress(psutil.Error, OSError):
            mark = _mark_of(process)
            if process.pid not in pids and not mark.startswith(f"{data_dir}|"):
                continue
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(
                    Running(
                        pid=process.pid,
                        group=os.getpgid(process.pid),
                        started_s=process.create_time(),
                        mark=mark,
                        command=tuple(process.cmdline()),
                    )
                )
    return found


def _mark_of(process: psutil.Process) -> str:
    # Another user's environment cannot be read, and what we started is ours.
    if process.uids().real != os.getuid():
        return ""
    try:
        return process.environ().get(INSTANCE_VARIABLE, "")
    except (psutil.AccessDenied, OSError):
        return ""


async def end_processes(found: Sequence[Running], *, patience_s: float) -> list[int]:
    """SIGTERM to these and their groups, after `patience_s` SIGKILL; returns the pids that are still there then."""
    processes = [process for each in found if (process := _handle(each)) is not None]
    groups = {process.pid for process in processes} & {each.pid for each in found if each.group == each.pid}
    alone = [each.pid for each in found if each.group not in groups]

    def are_gone() -> bool:
        nonlocal processes, groups
        # Not `psutil.wait_procs`: it waits for zombies too, which somebody else has to reap.
        processes = [process for process in processes if _is_running(process)]
        groups = {group for group in groups if _has_group(group)}
        return not processes and not groups

    for number, within_s in ((signal.SIGTERM, patience_s), (signal.SIGKILL, KILLED_S)):
        for group in groups:
            _signal_group(group, number)
        for process in processes:
            with contextlib.suppress(psutil.Error):
                # Once each: a second SIGTERM makes llama-server end at once.
                if process.pid in alone:
                    process.send_signal(number)
        await _poll(are_gone, every_s=_POLL_S, within_s=within_s)
    return [process.pid for process in processes]


def _handle(running: Running) -> psutil.Process | None:
    """The very process that was seen; `None` when it is gone, whoever has its pid now."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(running.pid)
        return process if abs(process.create_time() - running.started_s) <= _SAME_START_S else None
    return None


def _is_running(process: psutil.Process) -> bool:
    """A zombie is gone: it holds no memory and no port."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _started_s(pid: int) -> float | None:
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"

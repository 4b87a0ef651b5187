"""Operating system side of an instance: start, watch, signal, find what an earlier supervisor left behind."""

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import psutil

from llamaherd_supervisor.command_line import INSTANCE_VARIABLE, is_marked, matches
from llamaherd_supervisor.lifecycle import Instance

_SAME_START_S: Final = 1.5
"""Start times of one process as two supervisors see them may differ by the clock's corrections meanwhile."""
_GONE_POLL_S: Final = 0.01


class CannotSpawn(Exception):
    """The program could not be started at all. `str()` is one sentence."""


class Process:
    """One running llama-server in a session of its own, so that a Ctrl-C in the terminal does not reach it."""

    def __init__(self, child: asyncio.subprocess.Process, started_s: float) -> None:
        self._child = child
        self.pid = child.pid
        self.started_s = started_s

    @classmethod
    async def spawn(
        cls, program: str, arguments: Sequence[str], environment: Mapping[str, str], *, log_path: Path
    ) -> "Process":
        """Start it with its output appended to a file: a pipe would tie its life to ours. Raises `CannotSpawn`."""
        try:
            log = os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError as error:
            raise CannotSpawn(f"cannot write the log {log_path}: {error.strerror}") from error
        try:
            child = await asyncio.create_subprocess_exec(
                program,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(environment),
                start_new_session=True,
            )
        except OSError as error:
            raise CannotSpawn(f"cannot start {program}: {error.strerror or error}") from error
        finally:
            os.close(log)
        return cls(child, _started_s(child.pid) or time.time())

    async def wait(self) -> tuple[int | None, str | None]:
        """(exit code, name of the signal): one of them is `None`. Whatever else was in its group is killed."""
        code = await self._child.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        return (code, None) if code >= 0 else (None, _signal_name(-code))

    def send(self, *, kill: bool) -> None:
        """SIGTERM, or SIGKILL, to the process and its children. Nothing happens when it is gone already."""
        if self._child.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL if kill else signal.SIGTERM)
            # A stopped process (SIGSTOP, a debugger) hears SIGTERM only when it goes on.
            os.killpg(self.pid, signal.SIGCONT)

    def resident_bytes(self) -> int:
        """Memory it occupies, mapped weights included; 0 when it is gone."""
        try:
            return int(psutil.Process(self.pid).memory_info().rss)
        except psutil.Error:
            return 0


def free_port(host: str) -> int:
    """A port nobody listens on now. Somebody may before llama-server does: then it exits and is tried again."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def find_leftovers(data_dir: str, node: str, instances: Iterable[Instance]) -> list[psutil.Process]:
    """Processes that a supervisor of this node and data folder started and that still run.

    Two proofs, either is enough: our mark in the environment (also on one whose start was never recorded), or
    the recorded pid, start time and command line together.
    """
    recorded = {instance.pid: instance for instance in instances if instance.pid is not None}
    found = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        with contextlib.suppress(psutil.Error, OSError):
            instance = recorded.get(process.pid)
            if (instance is not None and _is_same(process, instance)) or _has_mark(process, data_dir, node):
                found.append(process)
    return found


def _is_same(process: psutil.Process, instance: Instance) -> bool:
    close = abs(process.create_time() - instance.process_started_s) <= _SAME_START_S
    return close and matches(process.cmdline(), path=instance.path, port=instance.port)


def _has_mark(process: psutil.Process, data_dir: str, node: str) -> bool:
    # Another user's environment cannot be read, and what we started is ours.
    if process.uids().real != os.getuid() or process.status() == psutil.STATUS_ZOMBIE:
        return False
    return is_marked(process.environ().get(INSTANCE_VARIABLE, ""), data_dir, node=node)


async def kill_leftovers(leftovers: Sequence[psutil.Process], *, timeout_s: float) -> list[int]:
    """SIGKILL them and wait until they are gone; returns the pids that are still there."""
    for process in leftovers:
        with contextlib.suppress(psutil.Error):
            process.kill()
    # Not `psutil.wait_procs`: it waits for zombies too, which somebody else has to reap.
    for _ in range(int(timeout_s / _GONE_POLL_S)):
        if not any(_is_running(process) for process in leftovers):
            break
        await asyncio.sleep(_GONE_POLL_S)
    return [process.pid for process in leftovers if _is_running(process)]


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

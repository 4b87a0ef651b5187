"""Starts a process without holding the interpreter's lock while the kernel does it.

`subprocess` and `os.posix_spawn` hold it until the child has been given a processor and runs its program: on a busy
machine nothing else of ours went on for 60 ms, whatever thread had called them (`just bench-storm`).
"""

import ctypes
import errno
import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

_LIBC: Final = ctypes.CDLL(None) if sys.platform == "linux" else None
# <spawn.h> of glibc and of musl, and the size of their largest structure (336) rounded up.
_SETSIGDEF: Final = 0x04
_SETSIGMASK: Final = 0x08
_SETSID: Final = 0x80
_STRUCTURE_BYTES: Final = 512

_IGNORED_BY_PYTHON: Final = (signal.SIGPIPE, signal.SIGXFSZ)
"""The child is to have them as any program expects them."""
_ERRORS: Final = 2
"""The file of messages; the next one is the first that no program expects."""


def spawn(program: str, arguments: Sequence[str], environment: Mapping[str, str], *, output: int) -> int:
    """The pid of a child in a session of its own that reads nothing and writes to the open file `output`.

    Nobody but the caller reaps it (`os.waitpid`). A program without a slash is looked up in the `PATH` of its own
    environment. Raises `OSError`.
    """
    path = program if os.sep in program else shutil.which(program, path=environment.get("PATH", os.defpath))
    if path is None:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), program)
    variables = [f"{name}={value}" for name, value in environment.items()]
    if any("\0" in word for word in (path, *arguments, *variables)):
        raise OSError(errno.EINVAL, "an argument or a variable contains a NUL character", program)
    if _LIBC is None:
        return _spawn_with_lock(path, (program, *arguments), environment, output)
    return _spawn_without_lock(_LIBC, path, (program, *arguments), variables, output)


def _spawn_with_lock(path: str, words: Sequence[str], environment: Mapping[str, str], output: int) -> int:
    return os.posix_spawn(
        path,
        list(words),
        environment,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, output, 1),
            (os.POSIX_SPAWN_DUP2, output, _ERRORS),
        ],
        setsid=True,
        setsigmask=(),
        setsigdef=_IGNORED_BY_PYTHON,
    )


def _spawn_without_lock(
    libc: ctypes.CDLL, path: str, words: Sequence[str], variables: Sequence[str], output: int
) -> int:
    """`ctypes` gives the lock back for as long as a call takes."""
    pid = ctypes.c_int()
    actions, attributes = (ctypes.create_string_buffer(_STRUCTURE_BYTES) for _ in range(2))
    nothing, defaults = (ctypes.create_string_buffer(_STRUCTURE_BYTES) for _ in range(2))
    libc.sigemptyset(nothing)
    libc.sigemptyset(defaults)
    for number in _IGNORED_BY_PYTHON:
        libc.sigaddset(defaults, int(number))
    _check(libc.posix_spawn_file_actions_init(actions))
    _check(libc.posix_spawnattr_init(attributes))
    try:
        _check(libc.posix_spawn_file_actions_addopen(actions, 0, os.fsencode(os.devnull), os.O_RDONLY, 0))
        for file in (1, _ERRORS):
            _check(libc.posix_spawn_file_actions_adddup2(actions, output, file))
        # Python's files are closed in a child by themselves; those of a driver's library need not be.
        if hasattr(libc, "posix_spawn_file_actions_addclosefrom_np"):
            _check(libc.posix_spawn_file_actions_addclosefrom_np(actions, _ERRORS + 1))
        _check(libc.posix_spawnattr_setflags(attributes, ctypes.c_short(_SETSID | _SETSIGMASK | _SETSIGDEF)))
        _check(libc.posix_spawnattr_setsigmask(attributes, nothing))
        _check(libc.posix_spawnattr_setsigdefault(attributes, defaults))
        code = libc.posix_spawn(
            ctypes.byref(pid), os.fsencode(path), actions, attributes, _strings(words), _strings(variables)
        )
        _check(code, path)
    finally:
        libc.posix_spawn_file_actions_destroy(actions)
        libc.posix_spawnattr_destroy(attributes)
    return pid.value


def _check(code: int, *about: str) -> None:
    if code:
        raise OSError(code, os.strerror(code), *about)


def _strings(texts: Sequence[str]) -> "ctypes.Array[Any]":
    return (ctypes.c_char_p * (len(texts) + 1))(*map(os.fsencode, texts), None)

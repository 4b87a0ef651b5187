"""A file on its way into the models folder: `<name>.gguf.part`, hashed as it grows, renamed when it is whole.

Every method but `size_bytes` may take long and is called in a thread. One lock serialises them: a task that was
cancelled leaves its last write behind in its thread.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from llamaherd_shared.errors import Conflict, Unavailable
from llamaherd_supervisor.models import PART_ENDING

_SLICE_BYTES: Final = 16 * 2**20
"""Hashed in one go: a thread is held no longer than that takes, about 20 ms."""


class PartFile:
    """The part of one file. It stays when the download breaks off, and the next one goes on at its end."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.with_name(target.name + PART_ENDING)
        self.size_bytes = 0
        """What has been hashed or written so far."""
        self._file = -1
        self._hash = hashlib.sha256()
        self._lock = threading.Lock()

    def open(self) -> None:
        """Make or take up the part. Raises `Conflict` while somebody else writes it, `Unavailable` if it cannot be."""
        with self._lock, telling_what(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                self._close()
                raise Conflict(f"another supervisor is writing {self.path}") from error
            except OSError as error:
                # Some network file systems have no locks: then there is one supervisor on the folder, or bad luck.
                if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                    raise

    def take_up(self) -> bool:
        """Hash the next slice of what was there when it was opened; `False` when all of it is."""
        with self._lock, telling_what(self.path):
            data = os.pread(self._file, _SLICE_BYTES, self.size_bytes)
            self._hash.update(data)
            self.size_bytes += len(data)
            return bool(data)

    def write(self, data: bytes | bytearray) -> None:
        """Append. Raises `Unavailable` when the disk is full."""
        with self._lock, telling_what(self.path):
            view = memoryview(data)
            while view:
                written = os.pwrite(self._file, view, self.size_bytes)
                self._hash.update(view[:written])
                self.size_bytes += written
                view = view[written:]

    def reset(self) -> None:
        """Begin anew: what is there is of no use."""
        with self._lock, telling_what(self.path):
            os.ftruncate(self._file, 0)
            self._hash = hashlib.sha256()
            self.size_bytes = 0

    def digest(self) -> str:
        """The SHA-256 of what is there, in hexadecimal digits."""
        with self._lock:
            return self._hash.hexdigest()

    def sync(self) -> None:
        """Onto the disk; `finish` is quick then."""
        with self._lock, telling_what(self.path):
            os.fsync(self._file)

    def finish(self) -> None:
        """Onto the disk and under its real name: a power loss leaves the part or the whole, nothing between."""
        with self._lock, telling_what(self.path):
            os.fsync(self._file)
            self.path.replace(self.target)
            _sync_folder(self.target.parent)
            self._close()

    def discard(self) -> None:
        """Delete the part; not somebody else's."""
        with self._lock, contextlib.suppress(OSError):
            if self._file >= 0:
                self.size_bytes = 0
                self.path.unlink()

    def close(self) -> None:
        """Let go of it; the part stays."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file = -1


@contextlib.contextmanager
def telling_what(path: Path) -> Iterator[None]:
    """What the operating system refuses becomes a sentence."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise Unavailable(f"cannot write {path}: {'the disk is full' if full else error.strerror}") from error


def part_size(target: Path) -> int:
    """Bytes that an earlier pull of this file has left."""
    try:
        return target.with_name(target.name + PART_ENDING).stat().st_size
    except OSError:
        return 0


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

"""The launcher's files in the data folder: the lock, `herd.json`, the nkey seeds and the herd's secret."""

import contextlib
import fcntl
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import nkeys
import psutil

from llamaherd.failures import Misused
from llamaherd.herd import CLOCK_SLACK_S, STATE_FILE, Herd, Started, decode_herd, encode_herd
from llamaherd_shared.errors import Conflict, HerdError

LOCK_FILE: Final = "herd.lock"
PRIVATE: Final = 0o600
LARGE_LOG_BYTES: Final = 8 * 2**20


class AlreadyRunning(Conflict):
    """Another launcher holds this data folder."""


def prepare_data_dir(data_dir: Path) -> None:
    """Make the folder and its parts; raises `Misused` when nothing can be written there."""
    try:
        for part in ("", "logs", "nats", "projections", "instances"):
            (data_dir / part).mkdir(parents=True, exist_ok=True)
        (data_dir / "nats").chmod(0o700)
        with tempfile.NamedTemporaryFile(dir=data_dir):
            pass
    except OSError as error:
        raise Misused(
            f"cannot write to the data folder {data_dir}: {error.strerror}; choose another one with --data-dir"
        ) from error


@contextlib.contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """Hold the data folder. The kernel lets go of it when this process ends, however it ends."""
    with open(data_dir / LOCK_FILE, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(_already_running(data_dir)) from None
        yield


def _already_running(data_dir: Path) -> str:
    herd = read_herd(data_dir)
    who = f" (process {herd.launcher.pid}, web UI {herd.ui_url})" if herd else ""
    return (
        f"a herd already runs on the data folder {data_dir}{who}; "
        "stop it with `llamaherd down`, or start another one with a different --data-dir"
    )


def write_herd(herd: Herd) -> None:
    write_atomically(Path(herd.data_dir) / STATE_FILE, encode_herd(herd))


def read_herd(data_dir: Path) -> Herd | None:
    """What `herd.json` says, whether that herd still runs or not; `None` without a readable one."""
    try:
        return decode_herd((data_dir / STATE_FILE).read_bytes())
    except (OSError, HerdError):
        return None


def running_herd(data_dir: Path) -> Herd | None:
    """The herd whose launcher is alive on this data folder."""
    herd = read_herd(data_dir)
    return herd if herd is not None and find_process(herd.launcher) else None


def forget_herd(data_dir: Path) -> None:
    (data_dir / STATE_FILE).unlink(missing_ok=True)


def identify(name: str, pid: int) -> Started:
    """A process by id and start time. Raises `psutil.NoSuchProcess` when it is gone already."""
    return Started(name=name, pid=pid, started_s=psutil.Process(pid).create_time())


def find_process(started: Started) -> psutil.Process | None:
    """The very process that was recorded, if it still runs; never another one with its id."""
    try:
        process = psutil.Process(started.pid)
        same = abs(process.create_time() - started.started_s) < CLOCK_SLACK_S
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None


def ensure_secret(data_dir: Path) -> Path:
    """The file with the herd's secret: 32 random bytes, made once."""
    path = data_dir / "secret"
    if not path.exists():
        write_atomically(path, secrets.token_bytes(32))
    return path


def ensure_seeds(data_dir: Path, users: tuple[str, ...]) -> dict[str, str]:
    """Make the users' nkey seeds where missing; returns their public keys by name."""
    keys = {}
    for user in users:
        path = seed_file(data_dir, user)
        if not path.exists():
            write_atomically(path, nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER))
        keys[user] = nkeys.from_seed(path.read_bytes().strip()).public_key.decode()
    return keys


def seed_file(data_dir: Path, user: str) -> Path:
    return data_dir / "nats" / f"{user}.seed"


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file as a whole; only its owner can read it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, PRIVATE)
    with open(descriptor, "wb") as file:
        file.write(content)
    temporary.replace(path)


def log_file(data_dir: Path, name: str) -> Path:
    """Where a process's stderr goes; a large one from earlier starts is put aside as `.1`."""
    path = data_dir / "logs" / f"{name}.log"
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > LARGE_LOG_BYTES:
            path.replace(path.with_suffix(".log.1"))
    return path


def last_lines(path: Path, count: int = 12) -> list[str]:
    """The end of a text file, oldest first; empty when there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 16_384))
            return file.read().decode("utf-8", "replace").splitlines()[-count:]
    except OSError:
        return []

"""What is on this host's disk: the models folder, the rows of the projection, the lock of the data folder."""

import fcntl
import os
import sqlite3
import stat
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from llamaherd_shared.bus import Recorded
from llamaherd_shared.errors import Unavailable
from llamaherd_shared.events.model import ModelEvent
from llamaherd_shared.fold import Snapshot, replay
from llamaherd_supervisor.gguf_file import GgufHead, UnreadableGguf, parse_gguf
from llamaherd_supervisor.lifecycle import Instance
from llamaherd_supervisor.models import Sighting, name_files
from llamaherd_supervisor.projection import Known, evolve

_DEPTH: Final = 3
"""Folders within folders: `<publisher>/<model>/<file>.gguf` is how other tools keep them."""
_BUFFER_BYTES: Final = 256 * 1024


def look(models_dir: Path) -> dict[str, Sighting]:
    """The GGUF files by model name. A folder that is not there is an empty one."""
    return name_files(_sightings(str(models_dir), _DEPTH))


def _sightings(folder: str, depth: int) -> Iterator[Sighting]:
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        try:
            status = entry.stat()
        except OSError:
            # A dangling link, or gone between the listing and the look.
            continue
        if stat.S_ISDIR(status.st_mode):
            if depth > 1 and not entry.name.startswith("."):
                yield from _sightings(entry.path, depth - 1)
        elif stat.S_ISREG(status.st_mode) and entry.name.lower().endswith(".gguf"):
            yield Sighting(entry.path, status.st_size, status.st_mtime_ns)


def read_head(sighting: Sighting) -> GgufHead | UnreadableGguf:
    """What the file says about itself, or why it cannot be served."""
    try:
        with open(sighting.path, "rb", buffering=_BUFFER_BYTES) as file:
            return parse_gguf(file, size_bytes=sighting.size_bytes)
    except UnreadableGguf as error:
        return error
    except OSError as error:
        return UnreadableGguf(f"it cannot be read: {error.strerror}")


SCHEMA: Final = """
create table if not exists instance(
  model text not null, number integer not null, body text not null, primary key(model, number)) without rowid;
create table if not exists model(model text primary key, body text not null) without rowid;
"""
"""Each row is the JSON of the state a history folds to; the tables of the library stand beside them."""
SCHEMA_VERSION: Final = 1

_INSTANCE: Final = msgspec.json.Decoder(Instance)
_MODEL: Final = msgspec.json.Decoder(ModelEvent)


def read_known(db: sqlite3.Connection) -> Known:
    """What the log tells about this node so far."""
    instances = [_INSTANCE.decode(body) for (body,) in db.execute("select body from instance")]
    models = [_MODEL.decode(body) for (body,) in db.execute("select body from model")]
    return Known(
        instances={(instance.model, instance.index): instance for instance in instances},
        models={model.model: model for model in models},
    )


def project(db: sqlite3.Connection, applied: Sequence[tuple[Recorded, Any]], *, node: str) -> None:
    """Fold a batch into the rows; facts about other nodes are passed over."""
    before = read_known(db)
    history = ((recorded.sequence, event) for recorded, event in applied)
    after = replay(partial(evolve, node=node), Snapshot(before), history).state
    for key, instance in after.instances.items():
        if before.instances.get(key) is not instance:
            row = (*key, msgspec.json.encode(instance).decode())
            db.execute("insert or replace into instance values(?,?,?)", row)
    for name, model in after.models.items():
        if before.models.get(name) is not model:
            db.execute("insert or replace into model values(?,?)", (name, msgspec.json.encode(model).decode()))


def lock_data_dir(data_dir: Path) -> int:
    """Take the supervisor's lock in the data folder until this process ends. Raises `Unavailable` if it is taken."""
    path = data_dir / "supervisor.lock"
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Unavailable(f"cannot write in the data folder {data_dir}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(lock, 32).decode("ascii", "replace").strip() or "unknown"
        os.close(lock)
        raise Unavailable(f"another supervisor (process {holder}) uses the data folder {data_dir}") from error
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    return lock


def open_log(folder: Path, model: str, index: int, *, max_bytes: int) -> Path:
    """The log file of an instance, made if missing; a long one is put aside as `.1` before a new start."""
    path = folder / f"{model}-{index}.log"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > max_bytes // 2:
            path.replace(path.with_name(path.name + ".1"))
        path.touch(0o600)
    except OSError as error:
        raise Unavailable(f"cannot write the log {path}: {error.strerror}") from error
    return path


def read_secret(path: Path | None) -> bytes:
    """The herd's secret; without a file it is empty, as for the gateway. Raises `Unavailable`."""
    if path is None:
        return b""
    try:
        return path.read_bytes()
    except OSError as error:
        raise Unavailable(f"cannot read the herd's secret {path}: {error.strerror} (`secret_file`)") from error

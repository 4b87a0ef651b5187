"""What is on this host's disk: files of models, the rows of the projection, the lock of the data folder."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import sqlite3
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from llamaherd_shared.bus import Recorded
from llamaherd_shared.commands import TensorDescription
from llamaherd_shared.errors import Rejected, Unavailable
from llamaherd_shared.events.model import ModelEvent
from llamaherd_shared.events.pull import PullStarted
from llamaherd_shared.fold import Snapshot, replay
from llamaherd_supervisor import gguf_description
from llamaherd_supervisor.gguf_description import GgufDescription
from llamaherd_supervisor.gguf_file import ProjectorHead, UnreadableGguf, parse_gguf, read_tables
from llamaherd_supervisor.launching import Plan
from llamaherd_supervisor.lifecycle import Instance
from llamaherd_supervisor.models import PART_ENDING, part_paths
from llamaherd_supervisor.projection import Known, evolve
from llamaherd_supervisor.shape import SHORT_ITEMS, Shape, shape_of

FileKind = Literal["model", "part", "projector"]
"""A model's only or first file, a later one of a split model, a projector."""

_WRONG_KIND: Final = {
    "model": "it is no model but a projector, a part for one",
    "projector": "it is no projector but a model",
}
_BUFFER_BYTES: Final = 256 * 1024
_SLICE_BYTES: Final = 16 * 2**20
"""Hashed in one go: a thread is held no longer than that takes, about 20 ms."""


def check_files(model: str, plan: Plan) -> None:
    """Raises `Unavailable` when a file is missing that the model is to be started with."""
    for name, path in plan.files.items():
        # What is wrong with the model's own file llama-server tells best.
        if name != "path" and not os.path.isfile(path):
            raise Unavailable(f"{model} cannot be started: there is no file {path} (`{name}`)")


def read_shape(path: str) -> Shape:
    """What decides how much memory a model takes, from all its files. Raises `UnreadableGguf` and `OSError`."""
    tables, file_bytes = [], 0
    for part in part_paths(path):
        size_bytes = os.stat(part).st_size
        with open(part, "rb", buffering=_BUFFER_BYTES) as file:
            tables.append(read_tables(file, size_bytes=size_bytes, max_items=SHORT_ITEMS))
        file_bytes += size_bytes
    return shape_of(tables, file_bytes=file_bytes)


def file_sizes(paths: Iterable[str]) -> dict[str, int]:
    """Bytes of models and other files, by path; of a split one those of all its parts. What is not there has none."""
    return {path: sum(file_size(Path(part)) or 0 for part in part_paths(path)) for path in paths}


def file_size(path: Path) -> int | None:
    """Bytes of a file; `None` when there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return None


def hash_slice(path: Path, offset: int, digest: "hashlib._Hash") -> int:
    """Take the next bytes of a file into a digest; how many, 0 at its end. Raises `Unavailable`."""
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(offset)
            data = file.read(_SLICE_BYTES)
    except OSError as error:
        raise Unavailable(f"cannot read {path}: {error.strerror}") from error
    digest.update(data)
    return len(data)


def check_file(path: Path, kind: FileKind) -> None:
    """Raises `UnreadableGguf` for what is no model (or its first part), no later part of one, or no projector."""
    try:
        size_bytes = path.stat().st_size
        with open(path, "rb", buffering=_BUFFER_BYTES) as file:
            if kind == "part":
                read_tables(file, size_bytes=size_bytes)
            elif isinstance(parse_gguf(file, size_bytes=size_bytes), ProjectorHead) != (kind == "projector"):
                raise UnreadableGguf(_WRONG_KIND[kind])
    except OSError as error:
        raise UnreadableGguf(f"it cannot be read: {error.strerror}") from error


def free_bytes(folder: Path) -> int:
    """Room on the disk of a folder that may not be there yet."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError as error:
        raise Unavailable(f"cannot see how full the disk of {folder} is: {error.strerror}") from error


def read_description(path: str, *, verbose: bool) -> GgufDescription:
    """What a model's files say about themselves. Raises `UnreadableGguf`."""
    try:
        first, *others = [Path(part) for part in part_paths(path)]
        with open(first, "rb", buffering=_BUFFER_BYTES) as file:
            found = gguf_description.read_description(file, size_bytes=first.stat().st_size, verbose=verbose)
        more: list[TensorDescription] = []
        for other in others:
            with open(other, "rb", buffering=_BUFFER_BYTES) as file:
                more += gguf_description.read_tensors(file, size_bytes=other.stat().st_size)
        return gguf_description.join_tensors(found, more) if more else found
    except OSError as error:
        raise UnreadableGguf(f"it cannot be read: {error.strerror}") from error


def model_paths(path: str, *, models_dir: Path) -> list[Path]:
    """The files of a model. Raises `Rejected` when they are not in the models folder, but behind a link in it."""
    home, folder = os.path.realpath(models_dir), os.path.realpath(os.path.dirname(path))
    if os.path.commonpath([home, folder]) != home:
        raise Rejected(f"{path} is in {folder}, outside the models folder: it is not ours to delete")
    return [Path(part) for part in part_paths(path)]


def remove_files(paths: Iterable[Path], *, models_dir: Path) -> list[str]:
    """Remove a model's files, what a pull has left of them, and folders that are empty then; returns what was there.

    Raises `Unavailable` for a file that cannot be removed.
    """
    removed = []
    for path in paths:
        try:
            path.unlink()
            removed.append(str(path))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise Unavailable(f"cannot remove {path}: {error.strerror}") from error
        with contextlib.suppress(OSError):
            path.with_name(path.name + PART_ENDING).unlink()
        remove_empty_folders(path.parent, models_dir=models_dir)
    return removed


def remove_empty_folders(folder: Path, *, models_dir: Path) -> None:
    """From this folder up to the models folder, which stays."""
    with contextlib.suppress(OSError):
        while folder != models_dir and models_dir in folder.parents:
            folder.rmdir()
            folder = folder.parent


SCHEMA: Final = """
create table if not exists instance(
  model text not null, number integer not null, body text not null, primary key(model, number)) without rowid;
create table if not exists model(model text primary key, body text not null) without rowid;
create table if not exists pull(pull text primary key, body text not null) without rowid;
create table if not exists need(plan text primary key, body text not null) without rowid;
create table if not exists drained(node text primary key) without rowid;
"""
"""Each row is the JSON of the state a history folds to; the tables of the library stand beside them."""
SCHEMA_VERSION: Final = 2

_INSTANCE: Final = msgspec.json.Decoder(Instance)
_MODEL: Final = msgspec.json.Decoder(ModelEvent)
_PULL: Final = msgspec.json.Decoder(PullStarted)
_NEED: Final = msgspec.json.Decoder(dict[str, int])


def read_known(db: sqlite3.Connection) -> Known:
    """What the log tells about this node so far."""
    instances = [_INSTANCE.decode(body) for (body,) in db.execute("select body from instance")]
    models = [_MODEL.decode(body) for (body,) in db.execute("select body from model")]
    pulls = [_PULL.decode(body) for (body,) in db.execute("select body from pull")]
    return Known(
        instances={(instance.model, instance.index): instance for instance in instances},
        models={model.model: model for model in models},
        pulls={pull.pull: pull for pull in pulls},
        needs={plan: _NEED.decode(body) for plan, body in db.execute("select plan, body from need")},
        drained=db.execute("select 1 from drained").fetchone() is not None,
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
    for name, pull in after.pulls.items():
        if name not in before.pulls:
            db.execute("insert or replace into pull values(?,?)", (name, msgspec.json.encode(pull).decode()))
    for plan, need in after.needs.items():
        if before.needs.get(plan) is not need:
            db.execute("insert or replace into need values(?,?)", (plan, msgspec.json.encode(need).decode()))
    if before.drained and not after.drained:
        db.execute("delete from drained")
    elif after.drained and not before.drained:
        db.execute("insert into drained values(?)", (node,))
    db.executemany("delete from pull where pull=?", [(name,) for name in before.pulls if name not in after.pulls])


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


def read_secret(path: Path | None) -> bytes:
    """The herd's secret; without a file it is empty, as for the gateway. Raises `Unavailable`."""
    if path is None:
        return b""
    try:
        return path.read_bytes()
    except OSError as error:
        raise Unavailable(f"cannot read the herd's secret {path}: {error.strerror} (`secret_file`)") from error

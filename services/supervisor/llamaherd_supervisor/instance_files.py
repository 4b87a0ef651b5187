"""What stands in the folder `instances`: a log file per spawn, and the record by which the next supervisor adopts."""

import contextlib
from pathlib import Path
from typing import Final

import msgspec

from llamaherd_shared.errors import Unavailable
from llamaherd_supervisor.adoption import Record

_RECORD: Final = msgspec.json.Decoder(Record)


def log_path(folder: Path, model: str, index: int, generation: int) -> Path:
    """Where one spawn of an instance writes its lines."""
    return folder / f"{model}-{index}.{generation}.log"


def open_log(folder: Path, model: str, index: int, generation: int) -> Path:
    """The log file of a new spawn, made; of those before it the last one is kept. Raises `Unavailable`."""
    path = log_path(folder, model, index, generation)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.touch(0o600)
    except OSError as error:
        raise Unavailable(f"cannot write the log {path}: {error.strerror}") from error
    with contextlib.suppress(OSError):
        for old in range(generation - 2, 0, -1):
            log_path(folder, model, index, old).unlink()
    return path


def write_record(folder: Path, record: Record) -> None:
    """Replace the record of an instance as a whole. Raises `Unavailable`."""
    path = _record_path(folder, record.model, record.index)
    part = path.with_name(f".{path.name}")
    try:
        part.write_bytes(msgspec.json.encode(record))
        part.replace(path)
    except OSError as error:
        raise Unavailable(f"cannot write the record {path}: {error.strerror}") from error


def read_records(folder: Path) -> list[Record]:
    """What earlier supervisors wrote down. What cannot be read is no record."""
    records = []
    for path in folder.glob("[!.]*.json"):
        with contextlib.suppress(OSError, msgspec.MsgspecError, UnicodeDecodeError):
            records.append(_RECORD.decode(path.read_bytes()))
    return records


def remove_record(folder: Path, model: str, index: int) -> None:
    """Of a spawn that failed. That of a process that ran stays, for what its load asked for, until the next spawn."""
    with contextlib.suppress(OSError):
        _record_path(folder, model, index).unlink()


def _record_path(folder: Path, model: str, index: int) -> Path:
    return folder / f"{model}-{index}.json"

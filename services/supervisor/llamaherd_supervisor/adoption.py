"""What a supervisor makes of the processes it finds when it starts: adopted, told as gone, or ended. Pure.

Three witnesses: the history (what was told), the record on disk (what was spawned) and the process table (what runs).
The record is written before the spawn and completed after it, and every process carries its mark in its environment;
so there is no moment at which a killed supervisor leaves a process that the next one does not know.

Whether an adopted instance is well is not asked here. It is probed like any other and, when it does not answer,
restarted like any other: a busy machine must not cost it its life.
"""

import hashlib
from collections.abc import Collection, Iterable
from typing import Final

import msgspec

from llamaherd_shared.events.line import LinePack
from llamaherd_shared.model_options import LoadOptions
from llamaherd_shared.upstream_key import upstream_key
from llamaherd_supervisor.command_line import is_marked, matches
from llamaherd_supervisor.launching import Plan
from llamaherd_supervisor.lifecycle import ALIVE, Instance
from llamaherd_supervisor.observations import Observation, ProcessExited, Spawned

_SAME_START_S: Final = 1.5
"""Start times of one process as two supervisors see them may differ by the clock's corrections meanwhile."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One spawn of an instance, as its supervisor wrote it down."""

    node: str
    model: str
    index: int
    generation: int
    mark: str
    """In the environment of the process and of its children (`render_mark`)."""
    boot_id: str
    """Of the machine: a process of an earlier boot is no more."""
    host: str
    port: int
    path: str
    """The model file."""
    command: tuple[str, ...]
    """Program and arguments."""
    plan: Plan | None = None
    """What they were made of; `None`: an earlier version did not say."""
    asked: LoadOptions = LoadOptions()
    """What of that the load asked for."""
    key_sha256: str
    """Digest of its API key: a herd whose secret was made anew cannot speak to it."""
    pid: int | None = None
    """`None`: it was about to be spawned."""
    process_started_s: float = 0.0
    log_bytes: int = 0
    """How much of its log was read a while ago. The last pack on the bus knows better, as long as it is kept."""


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """One process of the process table."""

    pid: int
    group: int
    """Process group; the pid itself in the process we spawned, which leads its group."""
    started_s: float
    mark: str = ""
    """Empty without one, or when the environment cannot be read."""
    command: tuple[str, ...] = ()


class Adopt(msgspec.Struct, frozen=True):
    """Go on supervising this process."""

    record: Record
    process: Running
    untold: tuple[Observation, ...] = ()
    """What the supervisor before us had no time to tell."""


class Gone(msgspec.Struct, frozen=True):
    """The process ended while nobody watched, or cannot be adopted."""


Found = Adopt | Gone


class Left(msgspec.Struct, frozen=True, kw_only=True):
    """What the supervisor before us left of one instance."""

    instance: Instance
    """As its history tells."""
    record: Record | None
    found: Found | None


def decide(
    instance: Instance, record: Record | None, running: Iterable[Running], *, boot_id: str, secret: bytes
) -> Found | None:
    """What becomes of one instance; `None` when it had no process and has none.

    Adopted is the process of the newest spawn: one the history speaks of as alive, or has not heard of yet.
    """
    untold = record is not None and record.generation > instance.generation
    told = record is not None and record.generation == instance.generation and instance.state in ALIVE
    if record is not None and (untold or told) and record.node == instance.node and _fits_key(record, secret):
        for process in running:
            if is_spawn(process, record, boot_id=boot_id):
                return Adopt(record, process, _untold(instance, record, process) if untold else ())
    return Gone() if instance.state in ALIVE else None


def _untold(instance: Instance, record: Record, process: Running) -> tuple[Observation, ...]:
    spawned = Spawned(
        pid=process.pid,
        process_started_s=process.started_s,
        host=record.host,
        port=record.port,
        path=record.path,
        options=record.plan.options.said if record.plan is not None else {},
        generation=record.generation,
    )
    if instance.state in ALIVE:
        return ProcessExited(generation=instance.generation, lost=True), spawned
    return (spawned,)


def is_spawn(process: Running, record: Record, *, boot_id: str) -> bool:
    """Whether this process is the one of the record, and not a child of it or a stranger that has its pid by now.

    The mark names the spawn. Without one (the program cleared its environment) start time and command line must
    agree. With it the start time is not asked: it shifts when the machine's clock is set.
    """
    if record.boot_id != boot_id or record.pid not in (None, process.pid) or process.group != process.pid:
        return False
    if process.mark:
        return process.mark == record.mark
    close = abs(process.started_s - record.process_started_s) <= _SAME_START_S
    return record.pid is not None and close and matches(process.command, path=record.path, port=record.port)


def find_orphans(
    running: Iterable[Running],
    adopted: Collection[Adopt],
    records: Collection[Record],
    *,
    data_dir: str,
    node: str,
    boot_id: str,
) -> list[Running]:
    """Processes that are ours and belong to no instance: nobody would ever stop them.

    Ours are those with a mark of this data folder and node, and those of our records. Children of what was adopted
    have its mark, or are in its group.
    """
    groups = {adopt.process.pid for adopt in adopted}
    marks = {adopt.record.mark for adopt in adopted}
    return [
        process
        for process in running
        if process.group not in groups
        and process.mark not in marks
        and (
            is_marked(process.mark, data_dir, node=node)
            or any(is_spawn(process, record, boot_id=boot_id) for record in records)
        )
    ]


def key_digest(key: str) -> str:
    """What a record says of the API key: enough to compare, not enough to use it."""
    return hashlib.sha256(key.encode()).hexdigest()


def _fits_key(record: Record, secret: bytes) -> bool:
    key = upstream_key(secret, node=record.node, model=record.model, index=record.index, generation=record.generation)
    return record.key_sha256 == key_digest(key)


def find_place(last: LinePack | None, record: Record | None, *, newest: int) -> tuple[int, int] | None:
    """(generation, byte) up to which an instance's lines are on the bus; `None` when nobody knows.

    `last` is the last pack that is stored, so nothing is lost and nothing sent twice however a supervisor ends.
    `newest` is the generation of the newest log file.
    """
    if last is not None and 0 < last.generation <= newest:
        return last.generation, last.read_bytes
    return (record.generation, record.log_bytes) if record is not None else None

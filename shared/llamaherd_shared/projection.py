"""A service's own SQLite file, built from streams: rows and checkpoint change in one transaction.

Killed at any moment, a projection resumes at its checkpoint: nothing is lost, nothing applied twice. A stream
that is not the one the checkpoint speaks of (made anew, rolled back) leads to a rebuild from its beginning.
The file may be deleted at any time while the service is stopped; the next start rebuilds it.
"""

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from llamaherd_shared.bus import Bus, Recorded, StreamHead
from llamaherd_shared.errors import HerdError, Unavailable
from llamaherd_shared.events import Undecodable, UnknownEvent
from llamaherd_shared.fold import find_gap
from llamaherd_shared.log import structlog

RETRY_S: Final = 1.0
"""Pause before trying again when the disk is full or the bus is away."""

LIBRARY_SCHEMA: Final = """
create table if not exists checkpoint(
  stream text primary key, created text not null, sequence integer not null, at_ns integer not null) without rowid;
create table if not exists gap(
  stream text not null, first integer not null, last integer not null, primary key(stream, first)) without rowid;
create table if not exists poison(
  stream text not null, sequence integer not null, error text not null, data blob not null,
  primary key(stream, sequence)) without rowid;
create table if not exists skipped(
  stream text not null, type text not null, count integer not null, primary key(stream, type)) without rowid;
"""
"""`gap`: what retention deleted before it was read. `poison`: bytes that could not be decoded, kept.
`skipped`: events of types this version does not know, counted."""

_LIBRARY_TABLES: Final = ("checkpoint", "gap", "poison", "skipped")
_log = structlog.get_logger("llamaherd.projection")


class ProjectionUnusable(HerdError):
    """The file cannot be opened or written."""

    kind = "unavailable"


class Checkpoint(msgspec.Struct, frozen=True):
    """Where a projection stands in one stream, and in which stream of that name."""

    stream: str
    created: str
    sequence: int
    at_ns: int
    """When the message at `sequence` was stored: tells a rolled back store from the one we know."""


Applied = Sequence[tuple[Recorded, Any]]
"""Decoded messages with their positions, in order."""


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """One stream a projection is built from."""

    stream: str
    decode: Callable[[bytes], Any]
    """May raise `UnknownEvent` (counted and skipped); `Undecodable` or a msgspec error keeps the bytes aside."""
    project: Callable[[sqlite3.Connection, Applied], None]
    """Writes rows. Runs in a thread, inside the transaction that moves the checkpoint."""
    committed: Callable[[Applied], None] | None = None
    """Called on the event loop after the commit, to update what is in memory."""
    reset: Callable[[], None] | None = None
    """Called on the event loop when the tables were emptied for a rebuild."""


class Projection:
    """One SQLite file in WAL mode, built from one stream by one follower. A service that reads two streams has two."""

    def __init__(self, path: Path, schema: str) -> None:
        """Opens or creates the file. Raises `ProjectionUnusable` with a sentence that names it."""
        self.path = path
        self._writing = threading.Lock()
        """Held over a transaction and by `close`: closing what a thread still uses ends the process."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self.db.execute("pragma journal_mode=wal")
            self.db.execute("pragma synchronous=normal")
            self.db.execute("pragma busy_timeout=5000")
            self.db.executescript(LIBRARY_SCHEMA + schema)
        except (OSError, sqlite3.Error) as error:
            raise ProjectionUnusable(f"cannot open the projection {path}: {error}; it may be deleted") from error

    def open_reader(self) -> sqlite3.Connection:
        """A read-only connection for queries; usable from any one thread at a time."""
        return sqlite3.connect(f"file:{self.path}?mode=ro", uri=True, isolation_level=None, check_same_thread=False)

    def checkpoint(self, stream: str) -> Checkpoint | None:
        """`None` before the first message of this stream."""
        row = self.db.execute(
            "select stream, created, sequence, at_ns from checkpoint where stream=?", (stream,)
        ).fetchone()
        return Checkpoint(*row) if row else None

    def apply(self, source: Source, created: str, batch: Sequence[Recorded]) -> list[tuple[Recorded, Any]]:
        """Project what is newer than the checkpoint and move it, in one transaction; returns what was projected."""
        with self._transaction():
            known = self.checkpoint(source.stream)
            at = known.sequence if known else 0
            fresh = [recorded for recorded in batch if recorded.sequence > at]
            if not fresh:
                return []
            if gap := find_gap(at, fresh[0].sequence):
                self._record_gap(source.stream, gap.first, gap.last)
            applied = self._decode(source, fresh)
            source.project(self.db, applied)
            last = fresh[-1]
            self.db.execute(
                "insert or replace into checkpoint values(?,?,?,?)", (source.stream, created, last.sequence, last.at_ns)
            )
        return applied

    def skip_to(self, stream: str, created: str, sequence: int) -> None:
        """Move the checkpoint over messages that retention deleted, and record them as a gap."""
        with self._transaction():
            known = self.checkpoint(stream)
            if gap := find_gap(known.sequence if known else 0, sequence + 1):
                self._record_gap(stream, gap.first, gap.last)
                self.db.execute("insert or replace into checkpoint values(?,?,?,?)", (stream, created, sequence, 0))

    def reset(self) -> None:
        """Empty every table, so that all streams are read from their beginning again."""
        with self._transaction():
            for (name,) in self.db.execute(
                "select name from sqlite_master where type='table' and name not like 'sqlite_%'"
                " and name not like '%\\_fts\\_%' escape '\\'"
            ).fetchall():
                # A full-text table with external content is emptied by its own command.
                if name.endswith("_fts"):
                    self.db.execute(f"insert into {name}({name}) values('delete-all')")
                else:
                    self.db.execute(f"delete from {name}")

    def close(self) -> None:
        """Close the file, after a transaction that is under way in a thread."""
        with self._writing:
            self.db.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._writing:
            self.db.execute("begin immediate")
            try:
                yield
                self.db.execute("commit")
            except BaseException:
                # SQLite has rolled back by itself after some errors (a full disk is one).
                if self.db.in_transaction:
                    self.db.execute("rollback")
                raise

    def _record_gap(self, stream: str, first: int, last: int) -> None:
        self.db.execute("insert or replace into gap values(?,?,?)", (stream, first, last))

    def _decode(self, source: Source, batch: Sequence[Recorded]) -> list[tuple[Recorded, Any]]:
        applied = []
        for recorded in batch:
            try:
                applied.append((recorded, source.decode(recorded.data)))
            except UnknownEvent as error:
                self.db.execute(
                    "insert into skipped values(?,?,1) on conflict do update set count=count+1",
                    (source.stream, error.type),
                )
            except (Undecodable, msgspec.MsgspecError, UnicodeDecodeError) as error:
                self.db.execute(
                    "insert or replace into poison values(?,?,?,?)",
                    (source.stream, recorded.sequence, str(error), recorded.data),
                )
        return applied


class Follower:
    """Keeps one source of a projection up to date, for ever."""

    def __init__(
        self, bus: Bus, projection: Projection, source: Source, *, trouble: Callable[[str], None] | None = None
    ) -> None:
        self._bus, self._projection, self._source = bus, projection, source
        self._trouble = trouble or (lambda _sentence: None)
        self.caught_up = asyncio.Event()
        """Set once everything stored before the start has been applied."""
        self.sequence = 0
        """Last sequence applied."""
        self.created = ""
        """Identity of the stream being read."""

    async def run(self) -> None:
        """Resume, follow, survive: ends only when it is cancelled."""
        while True:
            head = await self._verified_head()
            self.created = head.created
            known = self._projection.checkpoint(self._source.stream)
            self.sequence = known.sequence if known else 0
            if head.first > self.sequence + 1 and head.last >= head.first:
                await self._commit(self._projection.skip_to, self._source.stream, head.created, head.first - 1)
                self.sequence = head.first - 1
            if self.sequence >= head.last:
                self.caught_up.set()
            async with contextlib.aclosing(self._bus.read(self._source.stream, after=self.sequence)) as batches:
                async for batch in batches:
                    if not await self._take(batch):
                        break

    async def _take(self, batch: list[Recorded]) -> bool:
        """Apply one batch; `False` when the stream must be looked at again before going on."""
        if not batch:
            return False
        if batch[0].sequence > self.sequence + 1 and (await self._head()).created != self.created:
            return False
        applied = await self._commit(self._projection.apply, self._source, self.created, batch)
        self.sequence = batch[-1].sequence
        if applied and self._source.committed is not None:
            self._source.committed(applied)
        if batch[-1].pending == 0:
            self.caught_up.set()
        return True

    async def _commit(self, write: Callable[..., Any], *arguments: Any) -> Any:
        """Run a writing step in a thread; a full disk is reported once and tried again until it succeeds."""
        troubled = False
        while True:
            try:
                result = await asyncio.to_thread(write, *arguments)
            except sqlite3.OperationalError as error:
                if not troubled:
                    troubled = True
                    sentence = f"cannot write the projection {self._projection.path}: {error}; trying again"
                    _log.error(sentence)
                    self._trouble(sentence)
                await asyncio.sleep(RETRY_S)
            else:
                if troubled:
                    _log.info("the projection can be written again", path=str(self._projection.path))
                    self._trouble("")
                return result

    async def _head(self) -> StreamHead:
        while True:
            try:
                return await self._bus.stream_head(self._source.stream)
            except Unavailable:
                await asyncio.sleep(RETRY_S / 5)

    async def _verified_head(self) -> StreamHead:
        """The stream's head; before returning, the tables are emptied if the checkpoint is not of this stream."""
        head = await self._head()
        known = self._projection.checkpoint(self._source.stream)
        if known is not None and not await self._same_stream(known, head):
            _log.warning(
                "the stream is not the one this projection was built from: rebuilding", stream=self._source.stream
            )
            await self._commit(self._projection.reset)
            if self._source.reset is not None:
                self._source.reset()
        return head

    async def _same_stream(self, known: Checkpoint, head: StreamHead) -> bool:
        if known.created != head.created or known.sequence > head.last:
            return False
        if known.sequence < head.first or known.at_ns == 0:
            return True
        # A restored backup keeps `created` and reuses sequence numbers: only the stamp tells.
        stamp = await self._bus.stored_at(self._source.stream, known.sequence)
        return stamp is None or stamp == known.at_ns

"""Lines and their full-text index in SQLite.

A line's id is (stream sequence << 10) + its place in the pack, so it grows with the stream. The index keeps no
copy of the text (FTS5 external content) and is filled by one statement per transaction: a trigger per line is
four times slower.
"""

import heapq
import itertools
import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from llamaherd_logs.counting import Count, count
from llamaherd_logs.search import NOTHING, fts_query
from llamaherd_shared.bus import Recorded
from llamaherd_shared.commands import LineQuery, Lines, StoredLine
from llamaherd_shared.errors import Rejected
from llamaherd_shared.events.line import LEVELS, Line, LinePack

VERSION: Final = 1
SCHEMA: Final = """
create table if not exists source(
  id integer primary key, node text not null, service text not null, unit text not null,
  next integer not null, lines integer not null, missing integer not null, unique(node, service, unit));
create table if not exists line(
  id integer primary key, at_ns integer not null, level integer not null, source integer not null,
  text text not null, trace_id text not null);
create index if not exists line_source on line(source);
create index if not exists line_trouble on line(id) where level >= 2;
create virtual table if not exists line_fts using fts5(
  text, content='line', content_rowid='id', columnsize=0, tokenize='unicode61 remove_diacritics 2');
create table if not exists minute(minute integer primary key, first integer not null, last integer not null);
create table if not exists arrival(slot integer primary key, last integer not null, bytes integer not null);
create table if not exists upkeep(
  id integer primary key check(id = 1), bytes integer not null, deleted integer not null, merging integer not null);
"""
"""`level` is the place in `events.line.LEVELS`. `minute`: ids of the lines dated in a minute, so that a range of
times is a range of ids without an index on every line. `arrival`: last id stored in ten seconds, and the weight of
its lines, for retention. `upkeep`: weight of all lines, weight deleted since the index was last merged, and whether
it is being merged."""

PLACE_BITS: Final = 10
MAX_PACK: Final = 1 << PLACE_BITS
"""Lines of one pack that can be told apart; further ones count as missing."""
MAX_LIMIT: Final = 1000
MAX_ANSWER_BYTES: Final = 400_000
"""Text in one answer; with JSON's escapes it stays below nats-server's 1 MB. The rest is the next page."""
DELETE_STEP: Final = 5000
"""Lines deleted in one transaction, so that none takes long; more only when more came in."""

MAX_INTEGER: Final = 2**63 - 1
"""SQLite's largest; MessagePack's is twice that."""

_MINUTE_NS: Final = 60 * 1_000_000_000
_SLOT_NS: Final = 10 * 1_000_000_000
_MERGE_PAGES: Final = 64
"""Pages of the index merged in one transaction while a merge goes on; more when much is deleted."""
_TROUBLE: Final = LEVELS.index("warning")
_COLUMNS: Final = "line.id, line.at_ns, line.level, line.text, line.trace_id, node, service, unit"


class Retention(msgspec.Struct, frozen=True, kw_only=True):
    keep_s: float
    max_bytes: int


def record(db: sqlite3.Connection, retention: Retention, applied: Sequence[tuple[Recorded, LinePack]]) -> None:
    """Keep the lines of these packs and forget the oldest, inside the caller's transaction."""
    if not applied:
        return
    sources = _Sources(db)
    rows: list[tuple[int, int, int, int, str, str]] = []
    minutes: dict[int, tuple[int, int]] = {}
    arrivals: dict[int, tuple[int, int]] = {}
    for recorded, pack in applied:
        source = sources.count(pack)
        base = recorded.sequence << PLACE_BITS
        for row, line in enumerate(pack.lines[:MAX_PACK], base):
            at_ns = min(line.at_ns, MAX_INTEGER)
            rows.append((row, at_ns, LEVELS.index(line.level), source, line.text, line.trace_id))
            minute = at_ns // _MINUTE_NS
            first, _ = minutes.get(minute, (row, row))
            minutes[minute] = (first, row)
        slot = recorded.at_ns // _SLOT_NS
        _, weight = arrivals.get(slot, (0, 0))
        arrivals[slot] = (base + MAX_PACK - 1, weight + sum(map(weigh, pack.lines[:MAX_PACK])))
    sources.write()
    db.executemany("insert into line values(?,?,?,?,?,?)", rows)
    first_row, last_row = applied[0][0].sequence << PLACE_BITS, applied[-1][0].sequence + 1 << PLACE_BITS
    db.execute(
        "insert into line_fts(rowid, text) select id, text from line where id >= ? and id < ?", (first_row, last_row)
    )
    db.executemany(
        "insert into minute values(?,?,?) on conflict do update set"
        " first = min(first, excluded.first), last = max(last, excluded.last)",
        [(minute, first, last) for minute, (first, last) in minutes.items()],
    )
    db.executemany(
        "insert into arrival values(?,?,?) on conflict do update set"
        " last = max(last, excluded.last), bytes = bytes + excluded.bytes",
        [(slot, last, weight) for slot, (last, weight) in arrivals.items()],
    )
    upkeep = _Upkeep.read(db)
    upkeep.bytes += sum(weight for _, weight in arrivals.values())
    delete_old(db, upkeep, retention, at_most=max(DELETE_STEP, 4 * len(rows)))
    upkeep.write(db)


def weigh(line: Line) -> int:
    """About what a line takes in the file, its part of the index included (measured: 190 bytes for a text of 90).

    Counted instead of the file's pages, which the index frees only long after a line was deleted.
    """
    return 2 * len(line.text.encode()) + 60


class _Upkeep(msgspec.Struct):
    bytes: int = 0
    deleted: int = 0
    merging: bool = False

    @classmethod
    def read(cls, db: sqlite3.Connection) -> "_Upkeep":
        row = db.execute("select bytes, deleted, merging from upkeep").fetchone()
        return cls(row[0], row[1], bool(row[2])) if row else cls()

    def write(self, db: sqlite3.Connection) -> None:
        db.execute("insert or replace into upkeep values(1,?,?,?)", (self.bytes, self.deleted, self.merging))


class _Sources:
    """The sources one transaction counts lines of."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._counts: dict[tuple[str, str, str], tuple[int, Count]] = {}

    def count(self, pack: LinePack) -> int:
        """Count a pack and return its source's row."""
        key = (pack.node, pack.service, pack.unit)
        if key not in self._counts:
            found = self._db.execute(
                "select id, next, lines, missing from source where node=? and service=? and unit=?", key
            ).fetchone()
            if found is None:
                made = self._db.execute(
                    "insert into source(node, service, unit, next, lines, missing) values(?,?,?,0,0,0)", key
                )
                assert made.lastrowid is not None
                self._counts[key] = (made.lastrowid, count(None, pack))
                return made.lastrowid
            self._counts[key] = (found[0], Count(*found[1:]))
        row, known = self._counts[key]
        self._counts[key] = (row, count(known, pack))
        return row

    def write(self) -> None:
        self._db.executemany(
            "update source set next=?, lines=?, missing=? where id=?",
            [(known.next, known.lines, known.missing, row) for row, known in self._counts.values()],
        )


def delete_old(db: sqlite3.Connection, upkeep: _Upkeep, retention: Retention, *, at_most: int) -> None:
    """Delete the oldest lines that are beyond the retention, a limited number.

    Ages are counted from the newest arrival, not from the clock on the wall: a rebuild keeps the same lines.
    """
    last = _last_expired(db, upkeep, retention)
    deleted = 0
    if last is not None:
        beyond = db.execute(
            "select id from line where id <= ? order by id limit 1 offset ?", (last, at_most)
        ).fetchone()
        if beyond is not None:
            last = beyond[0]
        db.execute(
            "insert into line_fts(line_fts, rowid, text) select 'delete', id, text from line where id <= ?", (last,)
        )
        deleted = db.execute("delete from line where id <= ?", (last,)).rowcount
        db.execute("delete from minute where last <= ?", (last,))
        (weight,) = db.execute("select coalesce(sum(bytes), 0) from arrival where last <= ?", (last,)).fetchone()
        db.execute("delete from arrival where last <= ?", (last,))
        upkeep.bytes -= weight
        upkeep.deleted += weight
    _merge_index(db, upkeep, pages=max(_MERGE_PAGES, deleted // 20))


def _last_expired(db: sqlite3.Connection, upkeep: _Upkeep, retention: Retention) -> int | None:
    """The last id that has to go; `None` when none has. What came in the newest ten seconds always stays."""
    (newest,) = db.execute("select max(slot) from arrival").fetchone()
    horizon = newest - retention.keep_s * 1e9 // _SLOT_NS
    last, excess = None, upkeep.bytes - retention.max_bytes
    for slot, slot_last, weight in db.execute("select slot, last, bytes from arrival order by slot"):
        if slot == newest or (slot >= horizon and excess <= 0):
            break
        last = slot_last
        excess -= weight
    return last


def _merge_index(db: sqlite3.Connection, upkeep: _Upkeep, *, pages: int) -> None:
    """Take the deleted lines out of the index's pages, a few pages at a time.

    FTS5 only marks what is deleted; left to itself it keeps three times what is alive. A negative number starts
    to merge everything, positive ones go on with it (FTS5 documentation, section 6.8).
    """
    if upkeep.merging:
        before = db.total_changes
        db.execute("insert into line_fts(line_fts, rank) values('merge', ?)", (pages,))
        upkeep.merging = db.total_changes - before >= 2
    elif upkeep.deleted > upkeep.bytes // 3:
        upkeep.deleted, upkeep.merging = 0, True
        db.execute("insert into line_fts(line_fts, rank) values('merge', ?)", (-pages,))


def read_lines(db: sqlite3.Connection, query: LineQuery) -> Lines:
    """Answer a query from a read-only connection. Raises `Rejected` for one that makes no sense."""
    if not 1 <= query.limit <= MAX_LIMIT:
        raise Rejected(f"limit is {query.limit}: it must be from 1 to {MAX_LIMIT}")
    db.execute("begin")
    try:
        sources = _read_sources(db, query)
        lines = list(_first_page(_read(db, query, sources)))
        return Lines(lines=lines, dropped=_read_missing(db, sources))
    finally:
        db.execute("commit")


def _read_sources(db: sqlite3.Connection, query: LineQuery) -> list[int] | None:
    """Rows of the sources asked for; `None`: all."""
    if query.node is None and query.service is None and query.unit is None:
        return None
    found = db.execute(
        "select id from source where (?1 is null or node = ?1) and (?2 is null or service = ?2)"
        " and (?3 is null or unit = ?3)",
        (query.node, query.service, query.unit),
    )
    return [row for (row,) in found]


def _read_missing(db: sqlite3.Connection, sources: list[int] | None) -> int:
    counts = dict(db.execute("select id, missing from source").fetchall())
    return sum(counts.values()) if sources is None else sum(counts[source] for source in sources)


def _read(db: sqlite3.Connection, query: LineQuery, sources: list[int] | None) -> Iterator[StoredLine]:
    """Matching lines in the order asked for, by the way that reads the fewest rows."""
    match = fts_query(query.text)
    if match == NOTHING or sources == []:
        return iter(())
    conditions, values = _conditions(db, query)
    if match is not None:
        return _select(
            db,
            query,
            "line_fts join line on line.id = line_fts.rowid",
            "line_fts.rowid",
            ["line_fts match ?", *conditions, *_among(sources)],
            [match, *values],
        )
    if LEVELS.index(query.min_level) >= _TROUBLE:
        trouble = f"level >= {_TROUBLE}"
        return _select(
            db, query, "line indexed by line_trouble", "line.id", [trouble, *conditions, *_among(sources)], values
        )
    if sources is None:
        return _select(db, query, "line", "line.id", conditions, values)
    # The index holds each source's lines in order; one list over several sources would have to be sorted whole.
    pages = [
        _select(db, query, "line indexed by line_source", "line.id", [f"source = {source}", *conditions], values)
        for source in sources
    ]
    merged = heapq.merge(*pages, key=lambda line: line.id, reverse=query.after is None)
    return itertools.islice(merged, query.limit)


def _select(
    db: sqlite3.Connection, query: LineQuery, table: str, row: str, conditions: list[str], values: list[Any]
) -> Iterator[StoredLine]:
    for comparison, bound in (("<", query.before), (">", query.after)):
        if bound is not None:
            conditions = [*conditions, f"{row} {comparison} ?"]
            values = [*values, max(-1, min(bound, MAX_INTEGER))]
    where = " and ".join(conditions) or "true"
    order = "desc" if query.after is None else "asc"
    found = db.execute(
        f"select {_COLUMNS} from {table} join source on source.id = line.source"
        f" where {where} order by {row} {order} limit ?",
        [*values, query.limit],
    )
    for id_, at_ns, level, text, trace_id, node, service, unit in found:
        yield StoredLine(
            id=id_,
            at_ns=at_ns,
            level=LEVELS[level],
            text=text,
            trace_id=trace_id,
            node=node,
            service=service,
            unit=unit,
        )


def _conditions(db: sqlite3.Connection, query: LineQuery) -> tuple[list[str], list[Any]]:
    """What must hold for a line apart from its text, its source and the page."""
    conditions, values = [], []
    if query.min_level != LEVELS[0]:
        conditions.append("level >= ?")
        values.append(LEVELS.index(query.min_level))
    if query.from_ns is not None or query.to_ns is not None:
        from_ns = max(query.from_ns or 0, 0)
        to_ns = min(MAX_INTEGER if query.to_ns is None else query.to_ns, MAX_INTEGER)
        first, last = db.execute(
            "select min(first), max(last) from minute where minute >= ? and minute <= ?",
            (min(from_ns, MAX_INTEGER) // _MINUTE_NS, max(to_ns, 0) // _MINUTE_NS),
        ).fetchone()
        conditions += ["line.id >= ?", "line.id <= ?", "at_ns >= ?", "at_ns < ?"]
        values += [first or 0, last or 0, min(from_ns, MAX_INTEGER), max(to_ns, 0)]
    return conditions, values


def _among(sources: list[int] | None) -> list[str]:
    # Row numbers of our own: safe to write into the statement, which has no limit on them.
    return [] if sources is None else [f"source in ({','.join(map(str, sources))})"]


def _first_page(lines: Iterator[StoredLine]) -> Iterator[StoredLine]:
    """As many as fit into one answer, one at least."""
    size = 0
    for line in lines:
        size += len(line.text.encode()) + 200
        if size > MAX_ANSWER_BYTES and size > len(line.text.encode()) + 200:
            return
        yield line

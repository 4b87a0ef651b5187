"""Samples and roll-ups in SQLite.

Rows are keyed by (time << 20 | shape), so that writing appends and forgetting removes from the front. A column
`data` holds native 64-bit floats in the order of the shape's names: the values of a raw sample; of a roll-up
all sums, then all minima, then all maxima.
"""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import msgspec

from llamaherd_metrics.rollup import (
    AHEAD_S,
    RAW_STEP_S,
    Bucket,
    Clock,
    Rung,
    Shape,
    draw,
    pack_numbers,
    pick_step,
    unpack_numbers,
)
from llamaherd_metrics.sample import finite
from llamaherd_metrics.settings import MetricsSettings
from llamaherd_shared.bus import Recorded
from llamaherd_shared.commands import History, HistoryQuery
from llamaherd_shared.errors import Rejected
from llamaherd_shared.events.sample import Sample

VERSION: Final = 1
SCHEMA: Final = """
create table if not exists shape(
  id integer primary key, node text not null, source text not null, names text not null, unique(node, source, names));
create table if not exists raw(id integer primary key, data blob not null);
create table if not exists rollup_10s(id integer primary key, count integer not null, data blob not null);
create table if not exists rollup_60s(id integer primary key, count integer not null, data blob not null);
create table if not exists rollup_600s(id integer primary key, count integer not null, data blob not null);
create table if not exists clock(id integer primary key check(id = 1), stored_s integer not null, first_s integer);
create table if not exists refused(
  node text not null, source text not null, reason text not null, count integer not null,
  primary key(node, source, reason)) without rowid;
"""
"""`raw` ids hold milliseconds, roll-ups seconds. `refused`: samples that were not counted, and why."""

MAX_POINTS: Final = 18_000
"""In one answer, all curves together: 600 to 1000 kB of JSON; nats-server takes 1 MB."""

_SHAPE_BITS: Final = 20
_SHAPE_MASK: Final = (1 << _SHAPE_BITS) - 1


def ladder(settings: MetricsSettings) -> tuple[Rung, ...]:
    """The resolutions kept, fine to coarse."""
    return (
        Rung(RAW_STEP_S, settings.raw_keep_s),
        Rung(10, settings.keep_10s_s),
        Rung(60, settings.keep_60s_s),
        Rung(600, settings.keep_600s_s),
    )


def record(db: sqlite3.Connection, rungs: Sequence[Rung], applied: Sequence[tuple[Recorded, Sample]]) -> None:
    """Count every sample once, inside the caller's transaction.

    Refused and counted as such: what is later than the raw rows are kept, dated ahead, or there already.
    """
    raw, *rollups = rungs
    clock, shapes = read_clock(db), _Shapes(db)
    buckets = _Buckets(db, rollups)
    for recorded, sample in applied:
        at_s = sample.at_ns // 1_000_000_000
        clock = Clock(max(clock.stored_s, recorded.at_ns // 1_000_000_000), clock.first_s)
        values = finite(sample.values)
        if at_s > clock.stored_s + AHEAD_S:
            _count_refused(db, sample, "ahead")
        elif at_s < clock.horizon_s(raw):
            # Its raw row, by which a duplicate is known, may be gone already.
            _count_refused(db, sample, "late")
        elif not _insert_raw(db, sample.at_ns // 1_000_000, shape := shapes.row(sample, values), values):
            _count_refused(db, sample, "duplicate")
        else:
            clock = Clock(clock.stored_s, at_s if clock.first_s is None else min(clock.first_s, at_s))
            buckets.add(at_s, shape, list(values.values()))
    buckets.write()
    db.execute("insert or replace into clock values(1,?,?)", (clock.stored_s, clock.first_s))
    for rung in rungs:
        db.execute(f"delete from {_table(rung.step_s)} where id < ?", (_row_id(rung, clock.horizon_s(rung), 0),))


class _Shapes:
    """Row numbers of shapes, looked up once per transaction: one that is rolled back takes its new shapes with it."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._rows: dict[tuple[str, str, tuple[str, ...]], int] = {}

    def row(self, sample: Sample, values: Mapping[str, float]) -> int:
        shape = (sample.node, sample.source, tuple(values))
        if shape not in self._rows:
            key = (sample.node, sample.source, msgspec.json.encode(shape[2]).decode())
            self._db.execute("insert or ignore into shape(node, source, names) values(?,?,?)", key)
            found = self._db.execute("select id from shape where node=? and source=? and names=?", key).fetchone()
            self._rows[shape] = found[0]
        return self._rows[shape]


class _Buckets:
    """The buckets one transaction adds to."""

    def __init__(self, db: sqlite3.Connection, rungs: Sequence[Rung]) -> None:
        self._db, self._rungs = db, rungs
        self._open: dict[tuple[str, int], Bucket] = {}

    def add(self, at_s: int, shape: int, values: list[float]) -> None:
        for rung in self._rungs:
            key = (_table(rung.step_s), _row_id(rung, at_s // rung.step_s * rung.step_s, shape))
            bucket = self._open.get(key) or self._read(*key)
            if bucket is None:
                bucket = Bucket.of(values)
            else:
                bucket.add(values)
            self._open[key] = bucket

    def write(self) -> None:
        for (table, row), bucket in self._open.items():
            self._db.execute(f"insert or replace into {table} values(?,?,?)", (row, bucket.count, bucket.pack()))

    def _read(self, table: str, row: int) -> Bucket | None:
        found = self._db.execute(f"select count, data from {table} where id = ?", (row,)).fetchone()
        return Bucket.unpack(*found) if found else None


def read_history(db: sqlite3.Connection, rungs: Sequence[Rung], query: HistoryQuery) -> History:
    """Answer a query from a read-only connection. Raises `Rejected` for one that makes no sense."""
    if query.to_ns <= query.from_ns:
        raise Rejected("a history needs from_ns before to_ns")
    if query.max_points < 1:
        raise Rejected(f"max_points is {query.max_points}: it must be at least 1")
    db.execute("begin")
    try:
        return _read_history(db, rungs, query)
    finally:
        db.execute("commit")


def read_clock(db: sqlite3.Connection) -> Clock:
    row = db.execute("select stored_s, first_s from clock").fetchone()
    return Clock(*row) if row else Clock()


def _read_history(db: sqlite3.Connection, rungs: Sequence[Rung], query: HistoryQuery) -> History:
    clock, shapes = read_clock(db), _read_shapes(db, query)
    # Asking for more than there is must not cost resolution, nor overflow a row number.
    from_s = max(query.from_ns / 1e9, clock.first_s or 0)
    to_s = min(query.to_ns / 1e9, clock.stored_s + AHEAD_S)
    names = frozenset(query.names) if query.names is not None else None
    curves = _count_curves(db, rungs[-1], from_s, to_s, shapes, names)
    max_points = max(1, min(query.max_points, MAX_POINTS // max(curves, 1)))
    rung, step_s = pick_step(rungs, clock, from_s=from_s, to_s=to_s, max_points=max_points)
    series = draw(_read_rows(db, rung, from_s, to_s, shapes), shapes, step_s=step_s, names=names)
    return History(resolution_s=step_s, series=series)


def _count_curves(
    db: sqlite3.Connection,
    coarsest: Rung,
    from_s: float,
    to_s: float,
    shapes: Mapping[int, Shape],
    names: frozenset[str] | None,
) -> int:
    """How many curves there are in a range: every sample is in the coarsest rung, which has the fewest rows."""
    keys = (_row_id(coarsest, from_s // coarsest.step_s * coarsest.step_s, 0), _row_id(coarsest, to_s, 0))
    found = db.execute(
        f"select distinct id & {_SHAPE_MASK} from {_table(coarsest.step_s)} where id >= ? and id < ?", keys
    )
    present = [shapes[shape] for (shape,) in found if shape in shapes]
    return len(
        {
            (shape.node, shape.source, name)
            for shape in present
            for name in shape.names
            if names is None or name in names
        }
    )


def _read_shapes(db: sqlite3.Connection, query: HistoryQuery) -> dict[int, Shape]:
    rows = db.execute(
        "select id, node, source, names from shape where (?1 is null or node = ?1) and (?2 is null or source = ?2)",
        (query.node, query.source),
    )
    shapes = {
        row: Shape(node, source, tuple(msgspec.json.decode(names, type=list[str]))) for row, node, source, names in rows
    }
    if query.names is None:
        return shapes
    return {row: shape for row, shape in shapes.items() if not set(query.names).isdisjoint(shape.names)}


def _read_rows(
    db: sqlite3.Connection, rung: Rung, from_s: float, to_s: float, shapes: Mapping[int, Shape]
) -> Iterator[tuple[float, int, Bucket]]:
    """Rows of one rung in order of time; the bucket that covers `from_s` is included."""
    raw = rung.step_s == RAW_STEP_S
    columns = "id, 1, data" if raw else "id, count, data"
    begin_s = from_s if raw else from_s // rung.step_s * rung.step_s
    for row, count, data in db.execute(
        f"select {columns} from {_table(rung.step_s)} where id >= ? and id < ? order by id",
        (_row_id(rung, begin_s, 0), _row_id(rung, to_s, 0)),
    ):
        shape = row & _SHAPE_MASK
        if shape not in shapes:
            continue
        if raw:
            values = unpack_numbers(data)
            yield (row >> _SHAPE_BITS) / 1000, shape, Bucket(1, values, values, values)
        else:
            yield float(row >> _SHAPE_BITS), shape, Bucket.unpack(count, data)


def _insert_raw(db: sqlite3.Connection, at_ms: int, shape: int, values: Mapping[str, float]) -> bool:
    """Whether it was new."""
    row = (at_ms << _SHAPE_BITS | shape, pack_numbers(list(values.values())))
    return db.execute("insert or ignore into raw values(?,?)", row).rowcount == 1


def _count_refused(db: sqlite3.Connection, sample: Sample, reason: str) -> None:
    db.execute(
        "insert into refused values(?,?,?,1) on conflict do update set count = count + 1",
        (sample.node, sample.source, reason),
    )


def _table(step_s: int) -> str:
    return "raw" if step_s == RAW_STEP_S else f"rollup_{step_s}s"


def _row_id(rung: Rung, at_s: float, shape: int) -> int:
    at = int(at_s * 1000) if rung.step_s == RAW_STEP_S else int(at_s)
    return at << _SHAPE_BITS | shape

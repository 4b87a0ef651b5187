"""What the logs service keeps and finds, on SQLite in memory."""

import sqlite3
from collections.abc import Iterable
from typing import Any

import pytest

from llamaherd_logs.store import MAX_ANSWER_BYTES, SCHEMA, Retention, read_lines, record
from llamaherd_shared.bus import Recorded
from llamaherd_shared.commands import LineQuery
from llamaherd_shared.errors import Rejected
from llamaherd_shared.events.line import Level, Line, LinePack

NS = 1_000_000_000
NOW_NS = 1_800_000_000 * NS
FOREVER = Retention(keep_s=1e9, max_bytes=10**12)
TABLES = ("source", "line", "minute", "arrival")

Entry = tuple[Recorded, LinePack]


def database() -> sqlite3.Connection:
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.executescript(SCHEMA)
    return db


def entry(
    sequence: int,
    *texts: str,
    level: Level = "info",
    service: str = "ui",
    unit: str = "1",
    at_s: float = 0,
    stored_s: float | None = None,
    first: int = 0,
) -> Entry:
    lines = [Line(at_ns=NOW_NS + int(at_s * NS), level=level, text=text) for text in texts]
    stored_ns = NOW_NS + int((at_s if stored_s is None else stored_s) * NS)
    pack = LinePack(node="box", service=service, unit=unit, first=first, lines=lines)
    return Recorded("HERD_LOGS", sequence, stored_ns, "s", b""), pack


def recorded(*entries: Entry, retention: Retention = FOREVER) -> sqlite3.Connection:
    db = database()
    record(db, retention, entries)
    return db


def texts(db: sqlite3.Connection, **query: Any) -> list[str]:
    return [line.text for line in read_lines(db, LineQuery(**query)).lines]


def found_by_index(db: sqlite3.Connection) -> int:
    (rows,) = db.execute("select count(*) from line_fts where line_fts match 'line'").fetchone()
    return int(rows)


HERD = (
    entry(1, "gateway starts", "listening on 127.0.0.1:8080", service="gateway", unit="11"),
    entry(2, "loading model cria", service="llama-server", unit="cria/0", at_s=60),
    entry(3, "failed to load model", level="error", service="llama-server", unit="cria/0", at_s=61),
    entry(4, "load shed", level="warning", service="gateway", unit="12", at_s=120),
    entry(5, "café is OPEN", level="debug", service="ui", at_s=180),
)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"text": "model"}, ["failed to load model", "loading model cria"]),
        ({"text": "load"}, ["load shed", "failed to load model"]),
        ({"text": "load*"}, ["load shed", "failed to load model", "loading model cria"]),
        ({"text": '"load model"'}, ["failed to load model"]),
        ({"text": "model load"}, ["failed to load model"]),
        ({"text": "CAFE open"}, ["café is OPEN"]),
        ({"text": "127.0.0.1:8080"}, ["listening on 127.0.0.1:8080"]),
        ({"text": "absent"}, []),
        ({"text": "***"}, []),
        ({"text": '"'}, []),
        ({"text": "model", "service": "gateway"}, []),
        ({"text": "load", "min_level": "error"}, ["failed to load model"]),
        ({"min_level": "warning"}, ["load shed", "failed to load model"]),
        ({"min_level": "warning", "service": "gateway"}, ["load shed"]),
        ({"min_level": "info", "unit": "1"}, []),
        ({"service": "gateway"}, ["load shed", "listening on 127.0.0.1:8080", "gateway starts"]),
        ({"service": "gateway", "limit": 2}, ["load shed", "listening on 127.0.0.1:8080"]),
        ({"service": "gateway", "after": 0, "limit": 2}, ["gateway starts", "listening on 127.0.0.1:8080"]),
        ({"unit": "cria/0"}, ["failed to load model", "loading model cria"]),
        ({"node": "elsewhere"}, []),
        ({"before": 3 << 10, "limit": 2}, ["loading model cria", "listening on 127.0.0.1:8080"]),
        ({"after": 3 << 10}, ["load shed", "café is OPEN"]),
        ({"from_ns": NOW_NS + 61 * NS, "to_ns": NOW_NS + 121 * NS}, ["load shed", "failed to load model"]),
        ({"from_ns": NOW_NS + 61 * NS, "to_ns": NOW_NS + 121 * NS, "text": "model"}, ["failed to load model"]),
        ({"from_ns": 0, "to_ns": 1}, []),
        ({"before": 2**70, "limit": 1}, ["café is OPEN"]),
        ({"after": 2**70}, []),
        ({"before": -(2**70)}, []),
        ({"from_ns": -(2**70), "to_ns": 2**70, "text": "shed"}, ["load shed"]),
    ],
)
def test_query(query: dict[str, Any], expected: list[str]) -> None:
    assert texts(recorded(*HERD), **query) == expected


def test_line_comes_back_as_it_was_with_its_source() -> None:
    (line,) = read_lines(recorded(*HERD), LineQuery(text="shed")).lines

    assert (line.id, line.at_ns, line.level) == (4 << 10, NOW_NS + 120 * NS, "warning")
    assert (line.node, line.service, line.unit) == ("box", "gateway", "12")


@pytest.mark.parametrize("limit", [0, -1, 100_000])
def test_limit_out_of_bounds_is_rejected(limit: int) -> None:
    with pytest.raises(Rejected, match="limit"):
        read_lines(database(), LineQuery(limit=limit))


def test_pages_cover_every_line_once() -> None:
    db = recorded(*(entry(sequence, *(f"line {sequence} {n}" for n in range(7))) for sequence in range(1, 10)))
    seen: list[int] = []

    while page := read_lines(db, LineQuery(limit=10, before=seen[-1] if seen else None)).lines:
        seen += [line.id for line in page]

    assert seen == sorted(set(seen), reverse=True)
    assert len(seen) == 63


def test_long_lines_make_a_short_page() -> None:
    db = recorded(entry(1, *["x" * 60_000] * 20))

    page = read_lines(db, LineQuery(limit=20)).lines

    assert 1 <= len(page) < 20
    assert sum(len(line.text) for line in page) <= MAX_ANSWER_BYTES


def test_line_longer_than_an_answer_still_comes() -> None:
    assert len(texts(recorded(entry(1, "x" * (MAX_ANSWER_BYTES + 1))))) == 1


def test_lost_lines_are_told() -> None:
    db = recorded(entry(1, "a", first=0), entry(2, "b", first=5), entry(3, "c", first=0, service="gateway"))

    assert read_lines(db, LineQuery()).dropped == 4
    assert read_lines(db, LineQuery(service="gateway")).dropped == 0


def test_odd_characters_are_kept() -> None:
    odd = "nul \0 bell \a emoji \U0001fae8 ünïcode 日本語 \u202e reversed"
    db = recorded(entry(1, odd, at_s=2**62))

    assert texts(db) == texts(db, text="ünïcode") == texts(db, text="日本語") == [odd]


def cut(entries: list[Entry], size: int) -> Iterable[list[Entry]]:
    return (entries[start : start + size] for start in range(0, len(entries), size))


@pytest.mark.parametrize("size", [1, 3, 100])
def test_content_does_not_depend_on_how_the_stream_was_cut(size: int) -> None:
    entries = [entry(n, f"line {n}", "x", at_s=40 * n, first=2 * n, unit=str(n % 3)) for n in range(1, 50)]
    retention = Retention(keep_s=600, max_bytes=10**12)
    whole, pieces = recorded(*entries, retention=retention), database()
    for batch in cut(entries, size):
        record(pieces, retention, batch)

    for table in TABLES:
        rows = f"select * from {table} order by 1"
        assert pieces.execute(rows).fetchall() == whole.execute(rows).fetchall()
    assert found_by_index(pieces) == found_by_index(whole) > 0


def test_old_lines_go_from_the_index_as_well() -> None:
    db = recorded(
        entry(1, "line old"), entry(2, "line new", at_s=7200), retention=Retention(keep_s=3600, max_bytes=10**12)
    )

    assert texts(db) == ["line new"]
    assert texts(db, text="old") == []
    assert db.execute("select count(*) from minute").fetchone() == (1,)
    db.execute("insert into line_fts(line_fts, rank) values('integrity-check', 1)")


def test_line_that_arrives_late_is_kept_as_long_as_its_neighbours() -> None:
    late = entry(2, "line late", at_s=0, stored_s=7200)

    db = recorded(entry(1, "line", at_s=7200), late, retention=Retention(keep_s=3600, max_bytes=10**12))

    assert texts(db, from_ns=NOW_NS, to_ns=NOW_NS + NS) == ["line late"]


def test_oldest_lines_go_when_there_are_too_many_and_the_index_shrinks_with_them() -> None:
    db, retention = database(), Retention(keep_s=1e9, max_bytes=200_000)
    for sequence in range(1, 100):
        lines = [f"line {sequence}.{n} some words that fill the page with text {n * sequence}" for n in range(30)]
        record(db, retention, [entry(sequence, *lines, at_s=10 * sequence)])

    kept, last = db.execute("select count(*), max(id) >> 10 from line").fetchone()
    (indexed_bytes,) = db.execute("select sum(length(block)) from line_fts_data").fetchone()
    assert 800 < kept < 1_200
    assert last == 99
    assert found_by_index(db) == kept
    # About 30 bytes a line when nothing is dead; four times that when nothing is ever merged.
    assert indexed_bytes < 70 * kept


def test_queries_use_the_index_that_was_made_for_them() -> None:
    plan = " ".join(
        row[3]
        for query in ("level >= 2 and level >= 3", "source = 1")
        for row in recorded(*HERD).execute(f"explain query plan select id from line where {query} order by id desc")
    )

    assert "line_trouble" in plan
    assert "line_source" in plan
    assert "TEMP B-TREE" not in plan

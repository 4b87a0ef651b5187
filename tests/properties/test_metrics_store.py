"""What the recorder keeps does not depend on chance."""

import sqlite3
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from harness.samples import NOW_S, RUNGS, TABLES, database, entry, recorded
from llamaherd_metrics.store import record

SOURCES = st.sampled_from(["host", "gpu/0"])
NUMBERS = st.floats(allow_nan=True, allow_infinity=True, width=64)
VALUES = st.dictionaries(st.sampled_from(["a_pct", "b_bytes"]), NUMBERS, max_size=2)
STREAMS = st.lists(st.tuples(st.integers(0, 40), st.integers(-200, 90), SOURCES, VALUES), max_size=40)
"""Seconds since the one before was stored, how far the sample's own time is from that, source, values."""


def content(db: sqlite3.Connection) -> dict[str, list[Any]]:
    return {table: db.execute(f"select * from {table} order by 1, 2").fetchall() for table in TABLES}


@settings(max_examples=200, deadline=None)
@given(STREAMS, st.lists(st.integers(1, 7), min_size=1, max_size=40))
def test_content_does_not_depend_on_how_the_stream_was_cut(steps: list[Any], sizes: list[int]) -> None:
    entries, stored_s = [], NOW_S
    for pause_s, offset_s, source, named in steps:
        stored_s += pause_s
        entries.append(entry(stored_s + offset_s, named, stored_s=stored_s, source=source))
    cut, rest = database(), entries
    for size in [*sizes, len(entries)]:
        if batch := rest[:size]:
            record(cut, RUNGS, batch)
        rest = rest[size:]

    assert repr(content(cut)) == repr(content(recorded(entries) if entries else database()))

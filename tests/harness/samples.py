"""Samples as they come from the stream, and the recorder of metrics on SQLite in memory."""

import sqlite3
from collections.abc import Sequence

from llamaherd_metrics.rollup import Rung
from llamaherd_metrics.store import SCHEMA, record
from llamaherd_shared.bus import Recorded
from llamaherd_shared.events.sample import Sample

NOW_S = 1_800_000_000
NS = 1_000_000_000
RUNGS = (Rung(1, 120), Rung(10, 300), Rung(60, 900), Rung(600, 3600))
TABLES = ("shape", "raw", "rollup_10s", "rollup_60s", "rollup_600s", "clock", "refused")

Entry = tuple[Recorded, Sample]


def entry(at_s: float, values: dict[str, float], *, stored_s: float | None = None, source: str = "host") -> Entry:
    sample = Sample(node="box", source=source, at_ns=int(at_s * NS), values=values)
    return Recorded("HERD_METRICS", 1, int((at_s if stored_s is None else stored_s) * NS), "s", b""), sample


def database() -> sqlite3.Connection:
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.executescript(SCHEMA)
    return db


def recorded(entries: Sequence[Entry]) -> sqlite3.Connection:
    db = database()
    record(db, RUNGS, entries)
    return db

"""What the recorder keeps, on SQLite in memory."""

import sqlite3
from typing import Any

import pytest

from harness.samples import NOW_S, NS, RUNGS, TABLES, database, entry, recorded
from llamaherd_metrics import store
from llamaherd_metrics.store import read_history
from llamaherd_shared.commands import HistoryQuery
from llamaherd_shared.errors import Rejected


def history(db: sqlite3.Connection, **query: Any) -> list[tuple[str, list[float], list[float]]]:
    asked = {"from_ns": 0, "to_ns": 2 * NOW_S * NS} | query
    return [(one.name, one.at_s, one.mean) for one in read_history(db, RUNGS, HistoryQuery(**asked)).series]


def test_sample_that_comes_twice_counts_once() -> None:
    once, twice = entry(NOW_S, {"a": 1.0}), entry(NOW_S, {"a": 5.0}, stored_s=NOW_S + 100)

    db = recorded([once, twice])

    assert db.execute("select count from rollup_10s").fetchall() == [(1,)]
    assert db.execute("select reason, count from refused").fetchall() == [("duplicate", 1)]
    assert history(db) == [("a", [NOW_S], [1.0])]


def test_late_sample_enters_the_bucket_it_belongs_to() -> None:
    db = recorded(
        [entry(NOW_S, {"a": 1.0}), entry(NOW_S + 60, {"a": 9.0}), entry(NOW_S + 5, {"a": 3.0}, stored_s=NOW_S + 61)]
    )

    assert [row[0] for row in db.execute("select count from rollup_10s order by id")] == [2, 1]
    assert history(db, from_ns=NOW_S * NS, to_ns=(NOW_S + 20) * NS, max_points=2) == [("a", [NOW_S], [2.0])]


def test_sample_beyond_the_raw_rows_is_refused() -> None:
    db = recorded([entry(NOW_S, {"a": 1.0}), entry(NOW_S - 600, {"a": 1.0}, stored_s=NOW_S)])

    assert db.execute("select source, reason from refused").fetchall() == [("host", "late")]


def test_sample_from_a_wrong_clock_neither_counts_nor_makes_others_old() -> None:
    db = recorded([entry(NOW_S, {"a": 1.0}), entry(NOW_S + 86_400, {"a": 1.0}, stored_s=NOW_S + 1)])

    assert db.execute("select reason from refused").fetchall() == [("ahead",)]
    assert history(db) == [("a", [NOW_S], [1.0])]


def test_each_rung_forgets_at_its_own_age() -> None:
    db = recorded([entry(NOW_S + at_s, {"a": float(at_s)}) for at_s in range(0, 1800, 5)])

    oldest = {
        table: db.execute(f"select min(id) >> 20 from {table}").fetchone()[0] // (1000 if table == "raw" else 1)
        for table in TABLES[1:5]
    }
    ages_s = {table: NOW_S + 1795 - at_s for table, at_s in oldest.items()}
    assert 120 <= ages_s["raw"] < 180
    assert 300 <= ages_s["rollup_10s"] < 360
    assert 900 <= ages_s["rollup_60s"] < 960
    assert ages_s["rollup_600s"] == 1795


def test_asking_for_more_than_there_is_costs_no_resolution() -> None:
    db = recorded([entry(NOW_S + at_s, {"a": float(at_s)}) for at_s in range(10)])

    answer = read_history(db, RUNGS, HistoryQuery(from_ns=0, to_ns=2**63 - 1))

    assert answer.resolution_s == 1
    assert answer.series[0].mean == [float(at_s) for at_s in range(10)]


def test_history_is_limited_to_source_names_and_node() -> None:
    db = recorded([entry(NOW_S, {"a": 1.0, "b": 2.0}), entry(NOW_S, {"a": 3.0}, source="gpu/0")])

    assert [name for name, _, _ in history(db)] == ["a", "a", "b"]
    assert history(db, source="gpu/0") == [("a", [NOW_S], [3.0])]
    assert [name for name, _, _ in history(db, names=["b", "unheard"])] == ["b"]
    assert history(db, node="elsewhere") == []


def test_history_of_nothing_is_empty() -> None:
    assert history(database()) == []
    assert history(recorded([entry(NOW_S, {"a": 1.0})]), from_ns=1, to_ns=2) == []


@pytest.mark.parametrize("query", [{"from_ns": 5, "to_ns": 5}, {"from_ns": 0, "to_ns": 9, "max_points": 0}])
def test_history_that_makes_no_sense_is_rejected(query: dict[str, int]) -> None:
    with pytest.raises(Rejected):
        read_history(database(), RUNGS, HistoryQuery(**query))


def test_answer_that_would_not_fit_on_the_bus_gets_wider_points(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = {f"v{number}": 1.0 for number in range(40)}
    db = recorded([entry(NOW_S + at_s, wide) for at_s in range(50)])

    answers = []
    for most in (2000, 1800):
        monkeypatch.setattr(store, "MAX_POINTS", most)
        answers.append(read_history(db, RUNGS, HistoryQuery(from_ns=NOW_S * NS, to_ns=(NOW_S + 50) * NS)))

    assert answers[0].resolution_s == 1 < answers[1].resolution_s
    assert [sum(len(one.at_s) for one in answer.series) <= 1800 for answer in answers] == [False, True]

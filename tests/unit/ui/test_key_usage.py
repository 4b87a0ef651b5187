"""What each key used, added up in SQLite."""

import sqlite3

from llamaherd_shared.bus import Recorded
from llamaherd_shared.events.request import RequestEvent, RequestFinished, RequestPack
from llamaherd_ui.store import DAY_NS, REQUESTS_SCHEMA, project_requests, select_requests, select_usage
from llamaherd_ui.views import KeyUse


def finished(key: str, *, at_ns: int = 0, tokens: int | None = 5) -> RequestFinished:
    return RequestFinished(
        request_id="r", at_ns=at_ns, node="n", model="cria", route="/v1/chat/completions", status=200, outcome="ok",
        prompt_tokens=tokens, completion_tokens=tokens, key_id=key,
    )  # fmt: skip


def project(*events: tuple[int, RequestEvent]) -> sqlite3.Connection:
    """Each event in a batch of its own, stored on a day."""
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.executescript(REQUESTS_SCHEMA)
    for sequence, (day, event) in enumerate(events, start=1):
        project_requests(db, [(Recorded("HERD_REQUESTS", sequence, day * DAY_NS, "s", b""), event)])
    return db


def test_usage_is_added_up_by_key_over_packs_and_days() -> None:
    pack = RequestPack(requests=[finished("a", at_ns=7), finished("b", at_ns=9), finished("", at_ns=9)])

    db = project((100, finished("a", at_ns=3)), (100, pack), (101, finished("a", at_ns=5, tokens=None)))

    assert select_usage(db, now_ns=101 * DAY_NS) == {
        "a": KeyUse(requests=3, prompt_tokens=10, completion_tokens=10, last_used_ns=7),
        "b": KeyUse(requests=1, prompt_tokens=5, completion_tokens=5, last_used_ns=9),
    }


def test_usage_of_thirty_days_is_told_and_older_one_given_up() -> None:
    db = project((100, finished("a")), (129, finished("a")), (130, finished("a")))

    assert select_usage(db, now_ns=129 * DAY_NS)["a"].requests == 3
    assert select_usage(db, now_ns=130 * DAY_NS)["a"].requests == 2
    project_requests(db, [(Recorded("HERD_REQUESTS", 9, 131 * DAY_NS, "s", b""), finished("b"))])
    assert db.execute("select min(day) from key_usage").fetchone() == (129,)


def test_requests_are_found_by_their_key_through_its_index() -> None:
    db = project((1, finished("a")), (1, finished("")), (1, finished("b")))

    found = select_requests(db, before=None, model=None, outcome=None, key="b", limit=10)

    assert [request.key_id for request in found] == ["b"]
    plan = db.execute("explain query plan select id from request where key <> '' and key = ? order by id desc", ("b",))
    assert "request_key" in str(plan.fetchall())

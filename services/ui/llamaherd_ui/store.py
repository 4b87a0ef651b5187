"""The ui's own SQLite files: facts and entities from `HERD_EVENTS`, requests from `HERD_REQUESTS`.

A file each, so that a rebuild of one leaves the other alone. The fleet is also held in memory, loaded from the
file at start and folded forward after every commit.
"""

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import msgspec

from llamaherd_shared.errors import Unavailable
from llamaherd_shared.events import Event, decode_event
from llamaherd_shared.events.request import RequestFinished, requests_of
from llamaherd_shared.fold import Gap
from llamaherd_shared.projection import Applied, Projection, Source
from llamaherd_shared.streams import EVENTS, REQUESTS, STREAMS
from llamaherd_ui.projection import Entity, entity_key, evolve
from llamaherd_ui.resume import first_id
from llamaherd_ui.views import KeyUse, Request, render_request

P = ParamSpec("P")
T = TypeVar("T")

FACTS_VERSION: Final = 3
"""2: there are keys."""
REQUESTS_VERSION: Final = 3
"""2: a row is a request, not a message: there are packs. 3: requests have keys."""

FACTS_SCHEMA: Final = """
create table if not exists fact(
  sequence integer primary key, at_ns integer not null, subject text not null, data blob not null);
create table if not exists entity(key text primary key, state blob not null) without rowid;
"""

REQUESTS_SCHEMA: Final = """
create table if not exists request(
  id integer primary key, at_ns integer not null, model text not null, outcome text not null, key text not null,
  data blob not null);
create index if not exists request_model on request(model, id);
create index if not exists request_outcome on request(outcome, id);
create index if not exists request_key on request(key, id) where key <> '';
create table if not exists key_usage(
  key text not null, day integer not null, requests integer not null, prompt_tokens integer not null,
  completion_tokens integer not null, last_ns integer not null, primary key(key, day)) without rowid;
"""

_MAX_AGE_NS: Final = {stream.name: stream.max_age_s * 1_000_000_000 for stream in STREAMS}
DAY_NS: Final = 86_400 * 1_000_000_000
USAGE_DAYS: Final = 30
"""As long as requests are kept, so that a rebuilt projection tells the same."""
_PRUNE_ROWS: Final = 2
"""Rows looked at per row that is added, so that pruning keeps up."""

_ENTITY_DECODER: Final = msgspec.json.Decoder(Entity)
_REQUEST_DECODER: Final = msgspec.json.Decoder(RequestFinished)
_ENCODER: Final = msgspec.json.Encoder()


class Row(msgspec.Struct, frozen=True):
    """A stored fact."""

    sequence: int
    at_ns: int
    """When nats-server stored it."""
    subject: str
    data: bytes


class FleetStore:
    """`HERD_EVENTS` as rows, and the fleet it folds to in memory."""

    def __init__(self, projection: Projection) -> None:
        self.projection = projection
        self.entities: dict[str, Entity] = {}
        self.sequence = 0
        """Last fact folded into `entities`."""
        self._moved = asyncio.Event()
        self.load()

    def load(self) -> None:
        """Take the fleet from the file."""
        rows = self.projection.db.execute("select key, state from entity").fetchall()
        self.entities = {key: _ENTITY_DECODER.decode(state) for key, state in rows}
        checkpoint = self.projection.checkpoint(EVENTS)
        self.sequence = checkpoint.sequence if checkpoint else 0

    def source(self, *, committed: Callable[[Applied], None], reset: Callable[[], None]) -> Source:
        """What a `Follower` needs; `committed` is called with the fleet already up to date."""

        def fold(applied: Applied) -> None:
            for recorded, event in applied:
                _fold(self.entities, event)
                self.sequence = recorded.sequence
            moved, self._moved = self._moved, asyncio.Event()
            moved.set()
            committed(applied)

        def forget() -> None:
            self.load()
            reset()

        return Source(stream=EVENTS, decode=decode_event, project=project_facts, committed=fold, reset=forget)

    async def reached(self, sequence: int, timeout_s: float) -> None:
        """Return once this fact is folded in, so that who wrote it can read it; or after `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self.sequence < sequence:
                    await self._moved.wait()


def _fold(entities: dict[str, Entity], event: Event) -> None:
    key = entity_key(event)
    if key is None:
        return
    entity = evolve(entities.get(key), event)
    if entity is None:
        entities.pop(key, None)
    else:
        entities[key] = entity


def project_facts(db: sqlite3.Connection, applied: Applied) -> None:
    """Keep the facts as they came and move the entities they are about."""
    db.executemany(
        "insert or replace into fact values(?,?,?,?)",
        [(recorded.sequence, recorded.at_ns, recorded.subject, recorded.data) for recorded, _ in applied],
    )
    keys = {key for _, event in applied if (key := entity_key(event)) is not None}
    entities: dict[str, Entity] = {}
    for key in keys:
        if row := db.execute("select state from entity where key=?", (key,)).fetchone():
            entities[key] = _ENTITY_DECODER.decode(row[0])
    for _, event in applied:
        _fold(entities, event)
    db.executemany("delete from entity where key=?", [(key,) for key in keys if key not in entities])
    db.executemany(
        "insert or replace into entity values(?,?)",
        [(key, _ENCODER.encode(entity)) for key, entity in entities.items()],
    )
    if applied:
        _prune(db, "fact", "sequence", added=len(applied), oldest_ns=_oldest_ns(EVENTS, applied))


def project_requests(db: sqlite3.Connection, applied: Applied) -> None:
    """Keep the requests, with what they are searched by as columns; a pack is many rows."""
    rows = [
        (
            first_id(recorded.sequence) + place,
            recorded.at_ns,
            request.model,
            request.outcome,
            request.key_id,
            _ENCODER.encode(request),
        )
        for recorded, event in applied
        for place, request in enumerate(requests_of(event))
    ]
    db.executemany("insert or replace into request values(?,?,?,?,?,?)", rows)
    _project_usage(db, applied)
    if rows:
        _prune(db, "request", "id", added=len(rows), oldest_ns=_oldest_ns(REQUESTS, applied))


def _project_usage(db: sqlite3.Connection, applied: Applied) -> None:
    """Add up what each key used, by the day on which nats-server stored it."""
    used: dict[tuple[str, int], list[int]] = {}
    for recorded, event in applied:
        for request in requests_of(event):
            if request.key_id:
                sums = used.setdefault((request.key_id, recorded.at_ns // DAY_NS), [0, 0, 0, 0])
                sums[0] += 1
                sums[1] += request.prompt_tokens or 0
                sums[2] += request.completion_tokens or 0
                sums[3] = max(sums[3], request.at_ns)
    if used:
        db.executemany(
            "insert into key_usage values(?,?,?,?,?,?) on conflict(key, day) do update set"
            " requests = requests + excluded.requests, prompt_tokens = prompt_tokens + excluded.prompt_tokens,"
            " completion_tokens = completion_tokens + excluded.completion_tokens,"
            " last_ns = max(last_ns, excluded.last_ns)",
            [(*place, *sums) for place, sums in used.items()],
        )
        db.execute("delete from key_usage where day < ?", (_oldest_ns(REQUESTS, applied) // DAY_NS,))


def _oldest_ns(stream: str, applied: Applied) -> int:
    return applied[-1][0].at_ns - _MAX_AGE_NS[stream]


def _prune(db: sqlite3.Connection, table: str, key: str, *, added: int, oldest_ns: int) -> None:
    """Give up what the stream itself has given up, so that the file stays as small as a rebuilt one."""
    row = db.execute(f"select at_ns from {table} order by {key} limit 1").fetchone()
    if row is not None and row[0] < oldest_ns:
        db.execute(
            f"delete from {table} where {key} in"
            f" (select {key} from (select {key}, at_ns from {table} order by {key} limit ?) where at_ns < ?)",
            (_PRUNE_ROWS * added, oldest_ns),
        )


def requests_source(*, committed: Callable[[Applied], None], reset: Callable[[], None]) -> Source:
    return Source(stream=REQUESTS, decode=decode_event, project=project_requests, committed=committed, reset=reset)


async def query(
    projection: Projection,
    ask: Callable[Concatenate[sqlite3.Connection, P], T],
    *arguments: P.args,
    **named: P.kwargs,
) -> T:
    """Run one of the functions below in a thread on a connection of its own."""

    def run() -> T:
        db = projection.open_reader()
        try:
            return ask(db, *arguments, **named)
        finally:
            db.close()

    try:
        return await asyncio.to_thread(run)
    except sqlite3.Error as error:
        raise Unavailable(f"cannot read the projection {projection.path}: {error}") from error


def select_facts(db: sqlite3.Connection, *, after: int, limit: int) -> list[Row]:
    """Oldest first."""
    sql = "select sequence, at_ns, subject, data from fact where sequence > ? order by sequence limit ?"
    return [Row(*row) for row in db.execute(sql, (after, limit))]


def select_requests(
    db: sqlite3.Connection, *, before: int | None, model: str | None, outcome: str | None, key: str | None, limit: int
) -> list[Request]:
    """Newest first; `None` does not restrict."""
    conditions: dict[str, Any] = {"id < ?": before, "model = ?": model, "outcome = ?": outcome}
    # The index is for requests with a key only, and SQLite must see that none other is asked for.
    conditions["key <> '' and key = ?"] = key
    given = {sql: value for sql, value in conditions.items() if value is not None}
    where = f"where {' and '.join(given)}" if given else ""
    sql = f"select id, data from request {where} order by id desc limit ?"
    return [_request(*row) for row in db.execute(sql, (*given.values(), limit))]


def select_usage(db: sqlite3.Connection, *, now_ns: int) -> dict[str, KeyUse]:
    """What each key used in the last `USAGE_DAYS`; keys that were not used are not there."""
    sql = (
        "select key, sum(requests), sum(prompt_tokens), sum(completion_tokens), max(last_ns)"
        " from key_usage where day > ? group by key"
    )
    return {
        key: KeyUse(requests=requests, prompt_tokens=prompt, completion_tokens=completion, last_used_ns=last_ns)
        for key, requests, prompt, completion, last_ns in db.execute(sql, (now_ns // DAY_NS - USAGE_DAYS,))
    }


def select_requests_after(db: sqlite3.Connection, *, after: int, limit: int) -> list[Request]:
    """Oldest first."""
    sql = "select id, data from request where id > ? order by id limit ?"
    return [_request(*row) for row in db.execute(sql, (after, limit))]


def _request(id_: int, data: bytes) -> Request:
    return render_request(id_, _REQUEST_DECODER.decode(data))


def count_requests_after(db: sqlite3.Connection, *, after: int, limit: int) -> int:
    """How many there are, counted no further than `limit`."""
    sql = "select count(*) from (select 1 from request where id > ? limit ?)"
    count: int = db.execute(sql, (after, limit)).fetchone()[0]
    return count


def select_gaps(db: sqlite3.Connection, *, stream: str, after: int) -> list[Gap]:
    """What retention deleted before it was read, as far as it lies behind `after`."""
    sql = "select max(first, ?), last from gap where stream = ? and last > ? order by first"
    return [Gap(*row) for row in db.execute(sql, (after + 1, stream, after))]

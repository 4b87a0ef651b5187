"""The gateway's projection: the rows of `projection.py` in SQLite, and the same in memory for every request."""

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from typing import Any, Final

import msgspec

from llamaherd_gateway.access.keys import Key, Keyring, evolve_key
from llamaherd_gateway.projection import (
    PULLS_KEPT,
    Alias,
    Fleet,
    Instance,
    Model,
    Node,
    Pull,
    Spawn,
    evolve,
    evolve_alias,
    evolve_instance,
    evolve_model,
    evolve_node,
    evolve_pull,
)
from llamaherd_gateway.routing.table import build_table
from llamaherd_shared.events import decode_event
from llamaherd_shared.events.access import AccessBase
from llamaherd_shared.events.alias import AliasBase
from llamaherd_shared.events.instance import InstanceBase
from llamaherd_shared.events.model import ModelBase
from llamaherd_shared.events.node import NodeBase
from llamaherd_shared.events.pull import PullBase
from llamaherd_shared.projection import Applied, Source
from llamaherd_shared.streams import EVENTS

VERSION: Final = 4
"""Of the schema and of the structs in its `content`: another version is another file."""

SCHEMA: Final = """
create table if not exists node(node text primary key, content blob not null) without rowid;
create table if not exists model(
  node text, model text, content blob not null, primary key(node, model)) without rowid;
create table if not exists instance(
  node text, model text, place integer, content blob not null, primary key(node, model, place)) without rowid;
create table if not exists alias(alias text primary key, content blob not null) without rowid;
create table if not exists pull(number integer primary key, pull text not null unique, content blob not null);
create table if not exists key(key text primary key, content blob not null) without rowid;
"""

_INSTANCE: Final = msgspec.json.Decoder(Instance)
_MODEL: Final = msgspec.json.Decoder(Model)
_NODE: Final = msgspec.json.Decoder(Node)
_ALIAS: Final = msgspec.json.Decoder(Alias)
_PULL: Final = msgspec.json.Decoder(Pull)
_KEY: Final = msgspec.json.Decoder(Key)


def project(db: sqlite3.Connection, applied: Applied) -> None:
    """Fold each fact into its row; several facts about one instance in a batch write it once."""
    touched: dict[tuple[str, str, int], Instance] = {}
    for recorded, event in applied:
        match event:
            case InstanceBase():
                key = (event.node, event.model, event.index)
                known = touched.get(key) or _load_instance(db, key)
                touched[key] = evolve_instance(known, event, recorded.sequence)
            case ModelBase():
                model = evolve_model(event)
                if model is None:
                    db.execute("delete from model where node=? and model=?", (event.node, event.model))
                else:
                    row = (event.node, event.model, msgspec.json.encode(model))
                    db.execute("insert or replace into model values(?,?,?)", row)
            case NodeBase():
                row_of_node = (event.node, msgspec.json.encode(evolve_node(event)))
                db.execute("insert or replace into node values(?,?)", row_of_node)
            case AliasBase():
                alias = evolve_alias(event, recorded.sequence)
                if alias is None:
                    db.execute("delete from alias where alias=?", (event.alias,))
                else:
                    db.execute("insert or replace into alias values(?,?)", (event.alias, msgspec.json.encode(alias)))
            case PullBase():
                _project_pull(db, event)
            case AccessBase():
                _project_key(db, event)
    rows = [(*key, msgspec.json.encode(instance)) for key, instance in touched.items()]
    db.executemany("insert or replace into instance values(?,?,?,?)", rows)


def _project_pull(db: sqlite3.Connection, event: PullBase) -> None:
    row = db.execute("select content from pull where pull=?", (event.pull,)).fetchone()
    pull = evolve_pull(_PULL.decode(row[0]) if row else None, event)
    db.execute(
        "insert into pull(pull, content) values(?,?) on conflict(pull) do update set content=excluded.content",
        (event.pull, msgspec.json.encode(pull)),
    )
    db.execute("delete from pull where number <= (select max(number) from pull) - ?", (PULLS_KEPT,))


def _project_key(db: sqlite3.Connection, event: AccessBase) -> None:
    row = db.execute("select content from key where key=?", (event.key,)).fetchone()
    key = evolve_key(_KEY.decode(row[0]) if row else None, event)
    if key is not None:
        db.execute("insert or replace into key values(?,?)", (event.key, msgspec.json.encode(key)))


def load_fleet(db: sqlite3.Connection) -> Fleet:
    """The herd as the file last knew it."""
    nodes = [_NODE.decode(content) for (content,) in db.execute("select content from node")]
    models = [_MODEL.decode(content) for (content,) in db.execute("select content from model")]
    instances = [_INSTANCE.decode(content) for (content,) in db.execute("select content from instance")]
    aliases = [_ALIAS.decode(content) for (content,) in db.execute("select content from alias")]
    pulls = [_PULL.decode(content) for (content,) in db.execute("select content from pull order by number")]
    keys = [_KEY.decode(content) for (content,) in db.execute("select content from key")]
    return Fleet(
        nodes={node.node: node for node in nodes},
        models={(model.node, model.model): model for model in models},
        instances={instance.key: instance for instance in instances},
        aliases={alias.alias: alias for alias in aliases},
        pulls={pull.pull: pull for pull in pulls},
        keyring=Keyring({key.key: key for key in keys}),
    )


def _load_instance(db: sqlite3.Connection, key: tuple[str, str, int]) -> Instance | None:
    row = db.execute("select content from instance where node=? and model=? and place=?", key).fetchone()
    return _INSTANCE.decode(row[0]) if row else None


class View:
    """The herd in memory, always whole, and a way to wait for its next change."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.table = build_table(fleet)
        self.away: frozenset[str] = frozenset()
        """Nodes whose supervisors are not heard any more."""
        self._written_off: frozenset[Spawn] = frozenset()
        self.on_change: list[Callable[[], None]] = []
        """Called on the event loop after every change."""
        self._changed = asyncio.Event()

    def source(self) -> Source:
        """What a `Follower` needs to keep file and memory up to date."""
        return Source(stream=EVENTS, decode=decode_event, project=project, committed=self._committed, reset=self._reset)

    async def changed(self, timeout_s: float) -> None:
        """Return at the next change, or after `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()

    def set_away(self, away: frozenset[str]) -> None:
        """These nodes are not heard any more; of those that are again, everything that was said holds."""
        if away != self.away:
            self.away = away
            self._written_off = frozenset(each for each in self._written_off if each[0][0] in away)
            self._replace(self.fleet)

    def write_off(self, instance: Instance) -> None:
        """It cannot be reached, and the node that would tell why is away."""
        self._written_off |= {instance.spawn}
        self._replace(self.fleet)

    def _committed(self, applied: Applied) -> None:
        fleet: Any = self.fleet
        for recorded, event in applied:
            fleet = evolve(fleet, event, recorded.sequence)
        self._replace(fleet)

    def _reset(self) -> None:
        self._replace(Fleet())

    def _replace(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.table = build_table(fleet, self._written_off)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        for listener in self.on_change:
            listener()

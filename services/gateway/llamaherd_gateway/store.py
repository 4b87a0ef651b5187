"""The gateway's projection: the rows of `projection.py` in SQLite, and the same in memory for every request."""

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from typing import Any, Final

import msgspec

from llamaherd_gateway.projection import (
    Fleet,
    Instance,
    Model,
    Node,
    evolve,
    evolve_instance,
    evolve_model,
    evolve_node,
)
from llamaherd_gateway.routing import build_table
from llamaherd_shared.events import decode_event
from llamaherd_shared.events.instance import InstanceBase
from llamaherd_shared.events.model import ModelBase
from llamaherd_shared.events.node import NodeBase
from llamaherd_shared.projection import Applied, Source
from llamaherd_shared.streams import EVENTS

VERSION: Final = 2
"""Of the schema and of the structs in its `content`: another version is another file."""

SCHEMA: Final = """
create table if not exists node(node text primary key, content blob not null) without rowid;
create table if not exists model(
  node text, model text, content blob not null, primary key(node, model)) without rowid;
create table if not exists instance(
  node text, model text, place integer, content blob not null, primary key(node, model, place)) without rowid;
"""

_INSTANCE: Final = msgspec.json.Decoder(Instance)
_MODEL: Final = msgspec.json.Decoder(Model)
_NODE: Final = msgspec.json.Decoder(Node)


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
    rows = [(*key, msgspec.json.encode(instance)) for key, instance in touched.items()]
    db.executemany("insert or replace into instance values(?,?,?,?)", rows)


def load_fleet(db: sqlite3.Connection) -> Fleet:
    """The herd as the file last knew it."""
    nodes = [_NODE.decode(content) for (content,) in db.execute("select content from node")]
    models = [_MODEL.decode(content) for (content,) in db.execute("select content from model")]
    instances = [_INSTANCE.decode(content) for (content,) in db.execute("select content from instance")]
    return Fleet(
        {node.node: node for node in nodes},
        {(model.node, model.model): model for model in models},
        {instance.key: instance for instance in instances},
    )


def _load_instance(db: sqlite3.Connection, key: tuple[str, str, int]) -> Instance | None:
    row = db.execute("select content from instance where node=? and model=? and place=?", key).fetchone()
    return _INSTANCE.decode(row[0]) if row else None


class View:
    """The herd in memory, always whole, and a way to wait for its next change."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.table = build_table(fleet)
        self.on_change: list[Callable[[], None]] = []
        """Called on the event loop after every change."""
        self._changed = asyncio.Event()

    def source(self) -> Source:
        """What a `Follower` needs to keep file and memory up to date."""
        return Source(stream=EVENTS, decode=decode_event, project=project, committed=self._committed, reset=self._reset)

    async def changed(self, timeout_s: float) -> None:
        """Return at the next change, or after `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), timeout_s)

    def _committed(self, applied: Applied) -> None:
        fleet: Any = self.fleet
        for recorded, event in applied:
            fleet = evolve(fleet, event, recorded.sequence)
        self._replace(fleet)

    def _reset(self) -> None:
        self._replace(Fleet())

    def _replace(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.table = build_table(fleet)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        for listener in self.on_change:
            listener()

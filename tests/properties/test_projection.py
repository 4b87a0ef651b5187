"""The herd folds to the same in memory and in SQLite, whatever the history."""

import sqlite3
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.instance_facts import NAMES, exited, fold, ready, started
from llamaherd_gateway.store import SCHEMA, load_fleet, project
from llamaherd_shared.bus import Recorded
from llamaherd_shared.events.instance import InstanceFailed
from llamaherd_shared.events.model import ModelFound, ModelRemoved
from llamaherd_shared.events.node import NodeJoined, NodeLeft

EVENTS = st.one_of(
    st.builds(started, st.integers(1, 3), model=st.sampled_from(["m1", "m2"])),
    st.builds(ready, model=st.sampled_from(["m1", "m2"])),
    st.builds(exited, last_lines=st.just(["x"]), restart_at_ns=st.sampled_from([None, 5])),
    st.builds(InstanceFailed, node=st.just("n1"), model=st.just("m1"), at_ns=st.just(1), reason=st.just("r")),
    st.builds(
        ModelFound,
        node=st.sampled_from(["n1", "n2"]),
        model=st.just("m1"),
        at_ns=st.just(1),
        path=st.just("p"),
        size_bytes=st.just(1),
        modified_ns=st.just(1),
    ),
    st.just(ModelRemoved(**NAMES)),
    st.just(NodeLeft(node="n1", at_ns=1, cause="shutdown")),
    st.just(NodeJoined(node="n1", at_ns=1, version="0", cpus=1, memory_bytes=1, models_dir="", llama_server="")),
)


@settings(max_examples=500, deadline=None)
@given(st.lists(EVENTS, max_size=25), st.integers(1, 5))
def test_the_file_and_the_memory_agree_however_the_log_is_cut_into_batches(history: list[Any], size: int) -> None:
    db = sqlite3.connect(":memory:")
    db.executescript(SCHEMA)
    applied = [
        (Recorded("HERD_EVENTS", sequence, 0, "s", msgspec.json.encode(event)), event)
        for sequence, event in enumerate(history, 1)
    ]
    for at in range(0, len(applied), size):
        project(db, applied[at : at + size])

    assert load_fleet(db) == fold(*history)
    db.close()

"""What becomes of the processes that a restarted supervisor finds: the table of decisions, row by row."""

from typing import Any

import msgspec
import pytest

from llamaherd_shared.events.line import Line, LinePack
from llamaherd_shared.upstream_key import upstream_key
from llamaherd_supervisor.adoption import (
    Adopt,
    Found,
    Gone,
    Record,
    Running,
    decide,
    find_orphans,
    find_place,
    key_digest,
)
from llamaherd_supervisor.lifecycle import ALIVE, Instance, State
from llamaherd_supervisor.observations import ProcessExited, Spawned

SECRET = b"s3cret"
BOOT = "boot-1"


def mark(generation: int, *, model: str = "m", node: str = "n") -> str:
    return f"/data|{node}/{model}/0/{generation}"


def record(generation: int = 3, *, secret: bytes = SECRET, **changes: Any) -> Record:
    made = Record(
        node="n",
        model="m",
        index=0,
        generation=generation,
        mark=mark(generation),
        boot_id=BOOT,
        host="127.0.0.1",
        port=99,
        path="/m.gguf",
        command=("llama-server", "--model", "/m.gguf", "--port", "99"),
        key_sha256=key_digest(upstream_key(secret, node="n", model="m", index=0, generation=generation)),
        pid=7,
        process_started_s=100.0,
    )
    return msgspec.structs.replace(made, **changes)


def process(generation: int = 3, **changes: Any) -> Running:
    return msgspec.structs.replace(
        Running(pid=7, group=7, started_s=100.0, mark=mark(generation), command=record().command), **changes
    )


def instance(state: State, generation: int = 3) -> Instance:
    return Instance(node="n", model="m", state=state, generation=generation)


def found(state: State, written: Record | None, *running: Running, generation: int = 3) -> Found | None:
    return decide(instance(state, generation), written, running, boot_id=BOOT, secret=SECRET)


@pytest.mark.parametrize("state", sorted(ALIVE))
def test_process_of_the_newest_spawn_is_adopted_in_the_state_it_was_in(state: State) -> None:
    assert found(state, record(), process()) == Adopt(record(), process())


UNMARKED = process(mark="")
SAME = {
    "all agree": (record(), process()),
    "killed between spawn and record": (record(pid=None, process_started_s=0.0), process()),
    "clock was set meanwhile": (record(), process(started_s=4000.0)),
    "program cleared its environment": (record(), UNMARKED),
    "behind a wrapper": (record(), process(mark="", command=("sh", "/bin/llama-server", *record().command[1:]))),
}
OTHER = {
    "nothing runs": (record(), None),
    "no record": (None, process()),
    "another pid": (record(), process(pid=8, group=8)),
    "a child of it": (record(pid=None), process(pid=8)),
    "another spawn": (record(), process(2)),
    "another node's": (record(), process(mark=mark(3, node="other"))),
    "before the machine was started again": (record(boot_id="boot-0"), process()),
    "pid taken by another program": (record(), process(mark="", command=("vim",))),
    "pid taken by another llama-server": (record(), process(mark="", started_s=200.0)),
    "unmarked, and no pid recorded": (record(pid=None), UNMARKED),
    "record of an older spawn": (record(2), process(2)),
    "secret was made anew": (record(secret=b"old"), process()),
    "node was renamed": (record(node="before"), process()),
}


@pytest.mark.parametrize(("written", "running"), SAME.values(), ids=SAME)
def test_process_is_known_again(written: Record, running: Running) -> None:
    assert found(State.READY, written, running) == Adopt(written, running)


@pytest.mark.parametrize(("written", "running"), OTHER.values(), ids=OTHER)
def test_what_is_not_the_process_is_not_adopted(written: Record | None, running: Running | None) -> None:
    assert found(State.READY, written, *([] if running is None else [running])) == Gone()


@pytest.mark.parametrize("state", sorted(set(State) - ALIVE))
def test_instance_without_process_stays_without(state: State) -> None:
    assert found(state, None) is None
    assert found(state, record(), process()) is None, "its end was told: the record is old"


def test_spawn_that_was_never_told_is_told_and_adopted() -> None:
    for state in set(State) - ALIVE:
        adopted = found(state, record(), process(), generation=2)

        assert isinstance(adopted, Adopt)
        (spawned,) = adopted.untold
        assert isinstance(spawned, Spawned)
        assert (spawned.pid, spawned.port, spawned.generation) == (7, 99, 3)


def test_end_of_the_spawn_before_is_told_first() -> None:
    adopted = found(State.READY, record(), process(), generation=2)

    assert isinstance(adopted, Adopt)
    assert adopted.untold[0] == ProcessExited(generation=2, lost=True)
    assert isinstance(adopted.untold[1], Spawned)


def test_spawn_that_was_never_told_and_is_gone_is_nothing() -> None:
    assert found(State.STOPPED, record(), generation=2) is None


def orphans(*running: Running, adopted: Adopt | None = None, records: tuple[Record, ...] = ()) -> list[int]:
    kept = [adopted] if adopted is not None else []
    return [each.pid for each in find_orphans(running, kept, records, data_dir="/data", node="n", boot_id=BOOT)]


def test_marked_process_that_nobody_adopted_is_an_orphan() -> None:
    assert orphans(process(), process(2, pid=8, group=8)) == [7, 8]


def test_children_of_an_adopted_process_are_none() -> None:
    adopted = Adopt(record(), process())

    in_its_group, in_a_session_of_its_own = process(pid=8, mark=""), process(pid=9, group=9)

    assert orphans(process(), in_its_group, in_a_session_of_its_own, adopted=adopted) == []


def test_child_whose_parent_is_gone_is_an_orphan() -> None:
    assert orphans(process(pid=8), records=(record(),)) == [8]


def test_unmarked_process_of_a_record_is_an_orphan() -> None:
    assert orphans(UNMARKED, records=(record(),)) == [7]


@pytest.mark.parametrize(
    "stranger",
    [process(mark=""), process(mark="/other|n/m/0/3"), process(mark=mark(3, node="other"))],
    ids=["unmarked", "of another herd", "of another node"],
)
def test_strangers_are_left_alone(stranger: Running) -> None:
    assert orphans(stranger) == []


def test_renamed_node_ends_what_it_ran_under_its_old_name() -> None:
    before = record(node="before", mark=mark(3, node="before"))

    assert orphans(process(mark=before.mark), records=(before,)) == [7]


def pack(generation: int, read_bytes: int) -> LinePack:
    line = Line(at_ns=1, level="info", text="x")
    return LinePack(
        node="n",
        service="llama-server",
        unit="m/0",
        first=0,
        generation=generation,
        read_bytes=read_bytes,
        lines=[line],
    )


PLACES: dict[str, tuple[LinePack | None, Record | None, tuple[int, int] | None]] = {
    "the bus knows": (pack(3, 500), record(log_bytes=400), (3, 500)),
    "the record is ahead of the bus": (pack(3, 500), record(log_bytes=900), (3, 500)),
    "lines of the spawn before are missing": (pack(2, 500), record(), (2, 500)),
    "the bus keeps no line so old": (None, record(log_bytes=400), (3, 400)),
    "packs of an older version": (pack(0, 0), record(log_bytes=400), (3, 400)),
    "nobody knows": (None, None, None),
}


@pytest.mark.parametrize(("last", "written", "expected"), PLACES.values(), ids=PLACES)
def test_following_goes_on_behind_the_last_line_that_is_stored(
    last: LinePack | None, written: Record | None, expected: tuple[int, int] | None
) -> None:
    assert find_place(last, written, newest=3) == expected

"""The projection library against a real nats-server: killed, rolled back, cut by retention, out of disk."""

import asyncio
import contextlib
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import uvloop

from harness.deadline import until
from harness.disk import fill
from harness.nats import NatsServer
from llamaherd_shared.bus import Bus, Recorded
from llamaherd_shared.events import decode_event, encode_event
from llamaherd_shared.events.instance import InstanceDraining
from llamaherd_shared.projection import Follower, Projection, ProjectionUnusable, Source
from llamaherd_shared.streams import EVENTS

SCHEMA = """
create table if not exists fact(sequence integer primary key, type text not null, filler text);
create table if not exists total(name text primary key, count integer not null) without rowid;
"""
FACT = InstanceDraining(node="n", model="m", at_ns=1, cause="unload")


def project(db: sqlite3.Connection, applied: Sequence[tuple[Recorded, Any]]) -> None:
    db.executemany("insert into fact values(?,?,null)", [(recorded.sequence, "x") for recorded, _ in applied])
    db.execute(
        "insert into total values('facts', ?) on conflict(name) do update set count=count+excluded.count",
        (len(applied),),
    )


SOURCE = Source(stream=EVENTS, decode=decode_event, project=project)


@contextlib.asynccontextmanager
async def bus_to(server: NatsServer) -> AsyncIterator[Bus]:
    bus = await Bus.connect(server.url, service="test", timeout_s=10)
    try:
        await bus.ensure_streams()
        yield bus
    finally:
        await bus.close()


@contextlib.asynccontextmanager
async def following(
    bus: Bus, path: Path, source: Source = SOURCE, trouble: Callable[[str], None] | None = None
) -> AsyncIterator[tuple[Projection, Follower]]:
    projection = Projection(path, SCHEMA)
    follower = Follower(bus, projection, source, trouble=trouble)
    task = asyncio.create_task(follower.run())
    try:
        yield projection, follower
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        projection.close()


async def append(bus: Bus, count: int, first: int = 0) -> int:
    subject = bus.subjects.instance("n", "m", 0)
    sequences = await asyncio.gather(*(bus.append(subject, FACT, msg_id=f"m{n}") for n in range(first, first + count)))
    return max(sequences)


def rows(path: Path) -> tuple[int, int, int]:
    """(facts, distinct facts, counter)."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        facts, distinct = db.execute("select count(*), count(distinct sequence) from fact").fetchone()
        total = db.execute("select count from total").fetchone()
        return facts, distinct, total[0] if total else 0


def test_a_reader_killed_again_and_again_loses_nothing_and_doubles_nothing(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    path = tmp_path / "p.sqlite"

    async def body() -> None:
        async with bus_to(nats_server) as bus:
            writing = asyncio.create_task(append(bus, 3_000))
            for kill in range(5):
                seen = checkpoint(path)
                reader = start_reader(nats_server, path)
                await until(lambda seen=seen: checkpoint(path) > seen or writing.done(), within_s=30)
                reader.send_signal(signal.SIGKILL)
                reader.wait()
                if kill == 2:
                    nats_server.kill()
                    nats_server.start()
            last = await writing
            async with following(bus, path) as (_, follower):
                await until(lambda: follower.sequence >= last, within_s=30)
            assert rows(path) == (3_000, 3_000, 3_000)

    uvloop.run(body())


def start_reader(server: NatsServer, path: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, __file__, server.url, str(path)])


def checkpoint(path: Path) -> int:
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            (sequence,) = db.execute("select coalesce(max(sequence), 0) from checkpoint").fetchone()
            return int(sequence)
    except sqlite3.OperationalError:
        return 0


def test_a_deleted_file_is_rebuilt_to_the_same_content(nats_server: NatsServer, tmp_path: Path) -> None:
    async def body() -> None:
        async with bus_to(nats_server) as bus:
            last = await append(bus, 50)
            for name in ("first", "second"):
                async with following(bus, tmp_path / name) as (_, follower):
                    await until(lambda follower=follower: follower.sequence >= last)
                    assert follower.caught_up.is_set()
            assert rows(tmp_path / "first") == rows(tmp_path / "second") == (50, 50, 50)

    uvloop.run(body())


def test_a_stream_made_anew_leads_to_a_rebuild(nats_server: NatsServer, tmp_path: Path) -> None:
    path = tmp_path / "p.sqlite"

    async def body() -> None:
        async with bus_to(nats_server) as bus:
            last = await append(bus, 20)
            async with following(bus, path) as (_, follower):
                await until(lambda: follower.sequence >= last)
        nats_server.stop()
        shutil.rmtree(nats_server.folder / "store")
        nats_server.start()
        async with bus_to(nats_server) as bus:
            await append(bus, 7, first=1_000)
            async with following(bus, path) as (_, follower):
                await until(lambda: follower.sequence == 7)
        assert rows(path) == (7, 7, 7)

    uvloop.run(body())


def test_a_store_restored_from_a_backup_leads_to_a_rebuild(nats_server: NatsServer, tmp_path: Path) -> None:
    """It keeps its creation date and reuses sequence numbers: only the time stamp tells."""
    path = tmp_path / "p.sqlite"
    store, backup = nats_server.folder / "store", tmp_path / "backup"

    async def body() -> None:
        async with bus_to(nats_server) as bus:
            await append(bus, 10)
        nats_server.stop()
        shutil.copytree(store, backup)
        nats_server.start()
        async with bus_to(nats_server) as bus:
            last = await append(bus, 5, first=100)
            async with following(bus, path) as (_, follower):
                await until(lambda: follower.sequence >= last)
        nats_server.stop()
        shutil.rmtree(store)
        shutil.copytree(backup, store)
        nats_server.start()
        async with bus_to(nats_server) as bus:
            await append(bus, 30, first=200)
            resets: list[str] = []
            source = Source(stream=EVENTS, decode=decode_event, project=project, reset=lambda: resets.append("reset"))
            async with following(bus, path, source) as (_, follower):
                await until(lambda: follower.sequence == 40)
            assert resets == ["reset"]
        assert rows(path) == (40, 40, 40)

    uvloop.run(body())


def test_what_retention_deleted_is_recorded_as_a_gap(nats_server: NatsServer, tmp_path: Path) -> None:
    async def body() -> None:
        async with bus_to(nats_server) as bus:
            last = await append(bus, 20)
            await bus._js.update_stream(max_msgs=5, **_config(await bus._js.stream_info("HERD_EVENTS")))
            async with following(bus, tmp_path / "p.sqlite") as (projection, follower):
                await until(lambda: follower.sequence >= last)
                assert projection.db.execute("select stream, first, last from gap").fetchall() == [(EVENTS, 1, 15)]
            assert rows(tmp_path / "p.sqlite") == (5, 5, 5)

    uvloop.run(body())


def _config(info: Any) -> dict[str, Any]:
    config: dict[str, Any] = {
        key: value for key, value in vars(info.config).items() if value is not None and key != "max_msgs"
    }
    return config


def test_garbage_is_kept_aside_and_types_from_the_future_are_counted(nats_server: NatsServer, tmp_path: Path) -> None:
    async def body() -> None:
        async with bus_to(nats_server) as bus:
            subject = bus.subjects.instance("n", "m", 0)
            await bus.publish(subject, b"\xff garbage", msg_id="1")
            await bus.publish(subject, b'{"type":"instance.cloned.v9"}', msg_id="2")
            await bus.publish(subject, b'{"type":"instance.cloned.v9"}', msg_id="3")
            last = await append(bus, 1)
            async with following(bus, tmp_path / "p.sqlite") as (projection, follower):
                await until(lambda: follower.sequence >= last)
                poison = projection.db.execute("select sequence, data from poison").fetchall()
                skipped = projection.db.execute("select type, count from skipped").fetchall()
            assert poison == [(1, b"\xff garbage")]
            assert skipped == [("instance.cloned.v9", 2)]
            assert rows(tmp_path / "p.sqlite") == (1, 1, 1)

    uvloop.run(body())


def test_a_full_disk_is_one_sentence_and_nothing_is_lost(nats_server: NatsServer, small_disk: Path) -> None:
    path = small_disk / "p.sqlite"
    troubles: list[str] = []

    async def body() -> None:
        async with bus_to(nats_server) as bus:
            first = await append(bus, 10)
            async with following(bus, path, trouble=troubles.append) as (_, follower):
                await until(lambda: follower.sequence >= first)
                filler = fill(small_disk)

                last = await append(bus, 2_000, first=100)
                await until(lambda: troubles, within_s=20, what="the follower reports the full disk")
                assert str(path) in troubles[0]
                assert "full" in troubles[0] or "disk" in troubles[0]

                filler.unlink()
                await until(lambda: follower.sequence >= last, within_s=30)
            assert troubles[-1] == "", "the trouble is taken back"
        assert rows(path) == (2_010, 2_010, 2_010)

    uvloop.run(body())


def test_closing_waits_for_a_write_that_is_under_way(tmp_path: Path) -> None:
    """SQLite ends the process when a connection is closed under the thread that uses it."""
    writing, release = threading.Event(), threading.Event()

    def slow(db: sqlite3.Connection, applied: Sequence[tuple[Recorded, Any]]) -> None:
        writing.set()
        release.wait(10)
        project(db, applied)

    projection = Projection(tmp_path / "p.sqlite", SCHEMA)
    source = Source(stream=EVENTS, decode=decode_event, project=slow)
    batch = [Recorded(EVENTS, 1, 1, "s", encode_event(FACT))]
    writer = threading.Thread(target=projection.apply, args=(source, "now", batch))
    closer = threading.Thread(target=projection.close)

    writer.start()
    assert writing.wait(10)
    closer.start()
    assert closer.is_alive()
    release.set()
    writer.join(10)
    closer.join(10)

    assert rows(tmp_path / "p.sqlite") == (1, 1, 1)


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "p.sqlite").write_bytes(b"this is no database, and it is long enough to be looked at " * 40)

    with pytest.raises(ProjectionUnusable, match=r"cannot open the projection .*p\.sqlite"):
        Projection(tmp_path / "p.sqlite", SCHEMA)


if __name__ == "__main__":
    # The reader that the first test kills.
    async def follow() -> None:
        bus = await Bus.connect(sys.argv[1], service="reader")
        await Follower(bus, Projection(Path(sys.argv[2]), SCHEMA), SOURCE).run()

    uvloop.run(follow())

"""The logs service as a process against a real nats-server."""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from harness.deadline import until
from harness.disk import fill
from harness.nats import NatsServer
from harness.service import ServiceProcess
from llamaherd_shared.bus import Bus
from llamaherd_shared.commands import LineQuery, Lines
from llamaherd_shared.errors import HerdError, Rejected
from llamaherd_shared.events.line import Level, Line, LinePack, encode_lines
from llamaherd_shared.streams import LOGS
from llamaherd_shared.telemetry import LinePublisher


class Logs(ServiceProcess):
    """The service and the bus."""

    def __init__(self, folder: Path, server: NatsServer, bus: Bus) -> None:
        super().__init__("logs", folder, server)
        self.bus = bus

    async def write(self, *texts: str, level: Level = "info", unit: str = "1", first: int = 0) -> int:
        lines = [Line(at_ns=time.time_ns(), level=level, text=text) for text in texts]
        pack = LinePack(node="here", service="test", unit=unit, first=first, lines=lines)
        subject = self.bus.subjects.log(pack.node, pack.service, pack.unit)
        return await self.bus.publish(subject, encode_lines(pack), msg_id=f"{unit}:{first}:{texts[0]}")

    async def query(self, **query: Any) -> Lines:
        return await self.bus.request(self.bus.subjects.command("logs", "query"), LineQuery(**query), Lines)

    async def texts(self, **query: Any) -> list[str]:
        return [line.text for line in (await self.query(**query)).lines]

    async def found(self, count: int, **query: Any) -> list[str]:
        """The lines, once there are this many."""
        deadline = time.monotonic() + 10
        while len(texts := await self.texts(**query)) < count:
            assert time.monotonic() < deadline, f"{texts}\n{self.output}"
        return texts

    def content(self) -> dict[str, list[Any]]:
        """Every row of the projection; the index by what it finds."""
        with contextlib.closing(sqlite3.connect(self.data_dir / "projections" / "logs.v1.sqlite")) as db:
            tables = [name for (name,) in db.execute("select name from sqlite_master where type='table'")]
            rows = {t: db.execute(f"select * from {t}").fetchall() for t in tables if not t.startswith("line_fts")}
            rows["found"] = db.execute("select rowid from line_fts where line_fts match 'line'").fetchall()
            return rows


@contextlib.asynccontextmanager
async def logs(folder: Path, server: NatsServer) -> AsyncIterator[Logs]:
    bus = await Bus.connect(server.url, service="test", timeout_s=10)
    await bus.ensure_streams()
    service = Logs(folder, server, bus)
    try:
        yield service
    finally:
        service.clean_up()
        await bus.close()


def test_line_is_found_by_word_level_and_source(nats_server: NatsServer, tmp_path: Path) -> None:
    async def body() -> None:
        async with logs(tmp_path, nats_server) as service:
            await service.start(service.bus)
            await service.write("the llama hums", "the llama spits", unit="a")
            await service.write("the alpaca failed", level="error", unit="b")

            assert await service.found(2, text="llama") == ["the llama spits", "the llama hums"]
            assert await service.found(1, min_level="error", service="test") == ["the alpaca failed"]
            assert await service.texts(unit="b", service="test") == ["the alpaca failed"]
            assert await service.texts(text='"hums llama"') == []

    uvloop.run(body())


def test_line_comes_back_with_its_level_and_trace(nats_server: NatsServer, tmp_path: Path) -> None:
    async def body() -> None:
        async with logs(tmp_path, nats_server) as service:
            await service.start(service.bus)
            publisher = LinePublisher(service.bus, node="here", service="test", unit="1")
            publisher.offer(Line(at_ns=time.time_ns(), level="warning", text="from a publisher", trace_id="f" * 32))

            (text,) = await service.found(1, text="publisher")
            (line,) = (await service.query(text="publisher")).lines
            assert text == "from a publisher"
            assert (line.level, line.trace_id) == ("warning", "f" * 32)

    uvloop.run(body())


def test_line_is_searchable_within_a_quarter_of_a_second(nats_server: NatsServer, tmp_path: Path) -> None:
    async def body() -> None:
        async with logs(tmp_path, nats_server) as service:
            await service.start(service.bus)
            publisher = LinePublisher(service.bus, node="here", service="test", unit="1")
            delays_s = []
            for number in range(9):
                offered_s = time.monotonic()
                publisher.offer(Line(at_ns=time.time_ns(), level="info", text=f"needle{number}"))
                await service.found(1, text=f"needle{number}")
                delays_s.append(time.monotonic() - offered_s)

            assert sorted(delays_s)[4] < 0.25, delays_s

    uvloop.run(body())


def test_full_disk_is_said_where_people_look_and_loses_no_line(
    nats_server: NatsServer, tmp_path: Path, small_disk: Path
) -> None:
    async def body() -> None:
        async with logs(tmp_path, nats_server) as service:
            service.data_dir = small_disk
            await service.start(service.bus)
            await service.write("the disk has room")
            await service.found(1, text="disk")
            filler = fill(small_disk)

            # More than the pages that its files already have.
            for number in range(40):
                await service.write(*(f"llama {number}-{n} {'x' * 100}" for n in range(20)), unit=f"u{number}")

            await until(lambda: "full" in service.note, what="the presence says so", within_s=20)
            assert str(small_disk) in service.note
            assert await service.texts(text="room") == ["the disk has room"], "reading goes on"

            filler.unlink()
            assert len(await service.found(800, text="llama", limit=1000)) == 800
            await until(lambda: service.note == "", what="the trouble is taken back")
            assert await service.stop() == 0
            assert "Traceback" not in service.output

    uvloop.run(body())


@pytest.mark.parametrize(
    "text",
    ["*", '"', '""', "'", "AND", "NOT x", "a OR", "(", "text:x", "-", "\0", "\u202e", "🦙", "日本", "x" * 10_000],
)
def test_odd_search_is_answered_cleanly(shared_logs: "Shared", text: str) -> None:
    assert shared_logs.query(text=text) == []


@pytest.mark.parametrize(
    "query",
    [
        {"service": "no'such"},
        {"unit": "🦙"},
        {"node": ""},
        {"before": -(2**70)},
        {"after": 2**70},
        {"from_ns": 2**70},
        {"to_ns": -5},
        {"from_ns": 9, "to_ns": 3},
    ],
)
def test_query_for_what_is_not_there_is_empty(shared_logs: "Shared", query: dict[str, Any]) -> None:
    assert shared_logs.query(**query) == []


def test_limit_out_of_bounds_is_refused_in_words(shared_logs: "Shared") -> None:
    with pytest.raises(Rejected, match="limit"):
        shared_logs.query(limit=0)


class Shared:
    """One service for the tests that only ask."""

    def __init__(self, folder: Path, server: NatsServer) -> None:
        self.folder, self.server = folder, server
        self.runner = asyncio.Runner()
        self.stack = contextlib.AsyncExitStack()
        self.service = self.runner.run(self._open())

    async def _open(self) -> Logs:
        service = await self.stack.enter_async_context(logs(self.folder, self.server))
        await service.start(service.bus)
        await service.write("one plain line")
        await service.found(1, text="plain")
        return service

    def query(self, **query: Any) -> list[str]:
        return self.runner.run(self.service.texts(**query))

    def close(self) -> None:
        self.runner.run(self.stack.aclose())
        self.runner.close()


@pytest.fixture(scope="module")
def shared_logs(shared_nats_server: NatsServer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    shared = Shared(tmp_path_factory.mktemp("logs"), shared_nats_server)
    yield shared
    shared.close()


def test_projection_that_was_deleted_is_rebuilt_to_the_same_content(nats_server: NatsServer, tmp_path: Path) -> None:
    async def body() -> None:
        async with logs(tmp_path, nats_server) as service:
            await service.start(service.bus)
            for number in range(200):
                await service.write(f"line {number}", f"second line {number}", unit=str(number % 5), first=number)
            last = (await service.bus.stream_head(LOGS)).last
            await until(lambda: service.content()["checkpoint"][0][2] == last, what="everything is recorded")
            await service.stop()
            before = service.content()
            assert len(before["found"]) == 400

            service.delete_projections()
            await service.start(service.bus)

            assert service.content() == before

    uvloop.run(body())


def test_killed_service_keeps_every_line_once(nats_server: NatsServer, tmp_path: Path) -> None:
    async def body() -> None:
        async with logs(tmp_path, nats_server) as service:
            for round_ in range(3):
                await service.start(service.bus)
                for number in range(100):
                    await service.write(f"round {round_} line {number}", first=100 * round_ + number)
                service.kill()
            await service.start(service.bus)

            texts = await service.found(300, service="test", limit=1000)
            assert len(texts) == len(set(texts)) == 300
            assert (await service.query()).dropped == 0

    uvloop.run(body())


def test_nats_server_may_be_killed(nats_server: NatsServer, tmp_path: Path) -> None:
    async def body() -> None:
        async with logs(tmp_path, nats_server) as service:
            await service.start(service.bus)
            await service.write("before", first=0)
            nats_server.kill()
            nats_server.start()
            await service.write("after", first=1)

            deadline = time.monotonic() + 10
            texts: list[str] = []
            while texts != ["after", "before"]:
                assert time.monotonic() < deadline, texts
                with contextlib.suppress(HerdError):
                    texts = await service.texts(service="test")
            assert await service.stop() == 0

    uvloop.run(body())


def test_bytes_that_are_no_lines_are_kept_aside(nats_server: NatsServer, tmp_path: Path) -> None:
    async def body() -> None:
        async with logs(tmp_path, nats_server) as service:
            await service.start(service.bus)
            subject = service.bus.subjects.log("here", "test", "x")
            good = encode_lines(
                LinePack(node="n", service="s", unit="u", first=0, lines=[Line(at_ns=1, level="info", text="abcd")])
            )
            for number, junk in enumerate((b"", b"\xc1", good[:-3], good.replace(b"abcd", b"ab\xff\xfe"))):
                await service.bus.publish(subject, junk, msg_id=f"junk{number}")
            await service.write("still alive")

            assert await service.found(1, text="alive") == ["still alive"]
            assert len(service.content()["poison"]) == 4

    uvloop.run(body())


def test_tail_by_id_sees_every_line_in_order(nats_server: NatsServer, tmp_path: Path) -> None:
    async def body() -> None:
        async with logs(tmp_path, nats_server) as service:
            await service.start(service.bus)
            seen: list[str] = []
            after, number = 0, 0
            deadline = time.monotonic() + 15
            while len(seen) < 60:
                assert time.monotonic() < deadline, seen
                if number < 60:
                    await service.write(f"line {number}", first=number)
                    number += 1
                page = (await service.query(after=after, service="test", limit=7)).lines
                seen += [line.text for line in page]
                after = page[-1].id if page else after

            assert seen == [f"line {number}" for number in range(60)]

    uvloop.run(body())

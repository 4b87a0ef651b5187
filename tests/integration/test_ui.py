"""The ui as a process of its own, against a real nats-server."""

import asyncio
import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import nats
import psutil
import pytest
import uvloop

from harness.deadline import until
from harness.gateway import GatewayProcess, flood, open_herd
from harness.nats import NatsServer
from harness.ui import UiProcess
from llamaherd_shared.bus import Bus
from llamaherd_shared.commands import (
    Accepted,
    LoadModel,
    ModelReset,
    ReloadConfiguration,
    Reloaded,
    ResetModel,
    Restart,
)
from llamaherd_shared.errors import Conflict, Rejected
from llamaherd_shared.events import Event, encode_event
from llamaherd_shared.events.instance import InstanceProgressed, InstanceReady, InstanceStarted
from llamaherd_shared.events.line import Line, LinePack, encode_lines
from llamaherd_shared.events.model import ModelFound
from llamaherd_shared.events.node import NodeJoined
from llamaherd_shared.events.request import RequestFinished, RequestPack
from llamaherd_shared.events.sample import Sample, encode_sample
from llamaherd_shared.model_options import LoadOptions
from llamaherd_shared.streams import EVENTS, LOGS, REQUESTS, STREAMS
from llamaherd_ui.handlers import STATIC

WHO: dict[str, Any] = {"node": "n1", "model": "cria"}
JOINED = NodeJoined(node="n1", at_ns=1, version="0.1.0", cpus=2, memory_bytes=8, models_dir="/m", llama_server="/ls")
FOUND = ModelFound(**WHO, at_ns=2, path="/m/cria.gguf", size_bytes=3, modified_ns=1, chat=True)
STARTED = InstanceStarted(
    **WHO, at_ns=10, pid=7, process_started_s=1.0, host="127.0.0.1", port=9000, generation=1, path="/m/cria.gguf"
)
READY = InstanceReady(**WHO, at_ns=20, load_s=0.5, slots=4, context_tokens=2048)


@pytest.fixture
def ui(nats_server: NatsServer, tmp_path: Path) -> Iterator[UiProcess]:
    process = UiProcess(nats_server, tmp_path / "ui")
    yield process
    process.stop()


@pytest.fixture(scope="module")
def shared_ui(shared_nats_server: NatsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[UiProcess]:
    """For tests that only ask."""
    process = UiProcess(shared_nats_server, tmp_path_factory.mktemp("ui")).start()
    yield process
    process.stop()


class Writer:
    """Plays the other services: publishes facts, requests, lines and samples."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self._count = 0

    def _new_id(self) -> str:
        self._count += 1
        return f"{id(self)}:{self._count}"

    async def facts(self, *events: Event) -> int:
        """Append; answers the last sequence."""
        sequence = 0
        for event in events:
            sequence = await self.bus.append(self._subject(event), event, msg_id=self._new_id())
        return sequence

    def _subject(self, event: Any) -> str:
        match event:
            case NodeJoined():
                return self.bus.subjects.node(event.node)
            case ModelFound():
                return self.bus.subjects.model(event.node, event.model)
            case _:
                return self.bus.subjects.instance(event.node, event.model, event.index)

    async def progress(self, count: int) -> int:
        """So many facts, in a pipeline."""
        subject = self.bus.subjects.instance("n1", "cria", 0)
        events = [InstanceProgressed(**WHO, at_ns=at, stage="weights", ratio=at / count) for at in range(count)]
        sequences = [self.bus.append(subject, event, msg_id=self._new_id()) for event in events]
        return max(await asyncio.gather(*sequences))

    async def request(self, number: int, outcome: str = "ok", model: str = "cria") -> int:
        return await self._request(finished(number, outcome, model), model, outcome)

    async def pack(self, *numbers: int) -> int:
        """Requests in one message."""
        return await self._request(RequestPack(requests=[finished(number) for number in numbers]), "cria", "ok")

    async def _request(self, event: Event, model: str, outcome: str) -> int:
        subject = self.bus.subjects.request("n1", model, outcome)
        return await self.bus.publish(subject, encode_event(event), msg_id=self._new_id())

    async def lines(self, *texts: str) -> int:
        lines = [Line(at_ns=1, level="info", text=text) for text in texts]
        pack = LinePack(node="n1", service="test", unit="1", first=0, lines=lines)
        return await self.bus.publish(
            self.bus.subjects.log("n1", "test", "1"), encode_lines(pack), msg_id=self._new_id()
        )

    async def sample(self) -> None:
        sample = Sample(node="n1", source="host", at_ns=1, values={"cpu_pct": 12.5})
        await self.bus.publish(self.bus.subjects.sample("n1", "host"), encode_sample(sample), msg_id=self._new_id())


def finished(number: int, outcome: str = "ok", model: str = "cria") -> RequestFinished:
    return RequestFinished(
        request_id=f"r{number}", at_ns=number, node="n1", model=model, route="/v1/chat/completions",
        status=200, outcome=outcome,
    )  # fmt: skip


class Message(msgspec.Struct):
    """One server-sent event."""

    id: str
    name: str
    data: Any


class Browser:
    """Reads a live stream as a page would."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.messages: list[Message] = []
        self.comments = 0

    async def read(self, lines: AsyncIterator[str]) -> None:
        fields: dict[str, str] = {}
        async for line in lines:
            if line.startswith(":"):
                self.comments += 1
            elif line:
                name, _, value = line.partition(": ")
                fields[name] = value
            elif fields:
                self.messages.append(
                    Message(fields.get("id", ""), fields["event"], msgspec.json.decode(fields["data"]))
                )
                fields = {}

    def named(self, *names: str) -> list[Message]:
        return [message for message in self.messages if message.name in names]

    def requests(self) -> list[str]:
        return [message.data["request_id"] for message in self.named("request")]

    def lines_of(self, service: str = "test") -> list[str]:
        return [message.data["text"] for message in self.named("line") if message.data["service"] == service]

    @property
    def last_id(self) -> str:
        return next(message.id for message in reversed(self.messages) if message.id)


@contextlib.asynccontextmanager
async def streaming(
    ui: UiProcess, after: str | None = None, topics: str = "", headers: dict[str, str] | None = None
) -> AsyncIterator[Browser]:
    browser = Browser(ui.address)
    query = {name: value for name, value in {"after": after, "topics": topics}.items() if value}
    async with (
        httpx.AsyncClient(timeout=30) as client,
        client.stream("GET", f"{ui.address}/api/v1/stream", params=query, headers=headers) as answer,
    ):
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["x-accel-buffering"] == "no", "nginx would hold it back (peers.md, T26)"
        reading = asyncio.create_task(browser.read(answer.aiter_lines()))
        await until(lambda: browser.comments, what="the stream says at once that it is there")
        try:
            yield browser
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


def with_writer(server: NatsServer, body: Callable[[Writer], Awaitable[None]]) -> None:
    """Run a test's body with a bus of its own."""

    async def run() -> None:
        bus = await Bus.connect(server.url, service="test", timeout_s=10)
        await bus.ensure_streams()
        try:
            await body(Writer(bus))
        finally:
            await bus.close()

    uvloop.run(run())


def sequences(messages: list[Message]) -> list[int]:
    return [message.data["sequence"] for message in messages]


def ids(requests: list[Any]) -> list[int]:
    return [request["id"] for request in requests]


def test_fleet_shows_what_the_facts_tell(nats_server: NatsServer, ui: UiProcess) -> None:
    async def body(writer: Writer) -> None:
        await writer.facts(JOINED, FOUND, STARTED, READY)
        ui.start()

        fleet = ui.get("/api/v1/fleet")

        assert [node["node"] for node in fleet["nodes"]] == ["n1"]
        (model,) = fleet["models"]
        assert (model["model"], model["chat"], model["rejected"]) == ("cria", True, None)
        assert (model["instance"]["state"], model["instance"]["slots"]) == ("ready", 4)
        assert fleet["at"]["HERD_EVENTS"] == 4
        assert fleet["resume"].startswith(fleet["stream_id"] + ":4.0.")
        assert ui.get("/api/v1/models") == fleet["models"]
        await until(lambda: ui.get("/api/v1/fleet")["services"], what="the ui hears its own presence")

    with_writer(nats_server, body)


def test_facts_and_requests_come_in_pages(nats_server: NatsServer, ui: UiProcess) -> None:
    async def body(writer: Writer) -> None:
        await writer.facts(JOINED, FOUND, STARTED)
        for number in range(5):
            await writer.request(number, outcome="error" if number == 3 else "ok", model="cria" if number else "other")
        ui.start()

        first = ui.get("/api/v1/events?limit=2")
        second = ui.get(f"/api/v1/events?limit=2&after={first['next']}")
        newest = ui.get("/api/v1/requests?limit=3")
        older = ui.get(f"/api/v1/requests?limit=3&before={newest['next']}")

        assert [event["type"] for event in first["events"]] == ["node.joined.v1", "model.found.v1"]
        assert [event["type"] for event in second["events"]] == ["instance.started.v1"]
        assert second["events"][0]["subject"] == "herd.ev.instance.n1.cria.0"
        assert second["next"] is None
        assert ids(newest["requests"]) == [5 << 10, 4 << 10, 3 << 10]
        assert [request["request_id"] for request in older["requests"]] == ["r1", "r0"]
        assert older["next"] is None
        assert ids(ui.get("/api/v1/requests?outcome=error")["requests"]) == [4 << 10]
        assert ids(ui.get("/api/v1/requests?model=cria&outcome=ok")["requests"]) == [5 << 10, 3 << 10, 2 << 10]

    with_writer(nats_server, body)


def test_stream_goes_on_from_the_snapshot(nats_server: NatsServer, ui: UiProcess) -> None:
    async def body(writer: Writer) -> None:
        await writer.facts(JOINED)
        ui.start()
        resume = ui.get("/api/v1/fleet")["resume"]
        await writer.facts(FOUND)
        await until(lambda: ui.get("/api/v1/fleet")["at"]["HERD_EVENTS"] == 2)

        async with streaming(ui, resume) as browser:
            await writer.facts(STARTED)
            await writer.request(1)
            await writer.lines("hello", "herd")
            await writer.sample()
            await until(lambda: browser.named("request") and browser.named("sample"))
            await until(lambda: len(browser.named("fact")) == 2 and len(browser.lines_of()) == 2)

            assert [message.data["event"]["type"] for message in browser.named("fact")] == [
                "model.found.v1",
                "instance.started.v1",
            ]
            assert browser.named("request")[0].data["request_id"] == "r1"
            assert browser.lines_of() == ["hello", "herd"]
            assert browser.named("sample")[0].data["values"] == {"cpu_pct": 12.5}
            assert not browser.named("gap", "reset")

    with_writer(nats_server, body)


def test_topics_limit_what_is_sent(nats_server: NatsServer, ui: UiProcess) -> None:
    async def body(writer: Writer) -> None:
        ui.start()

        async with streaming(ui, topics="requests") as browser:
            await writer.facts(JOINED)
            await writer.lines("no")
            await writer.request(1)
            await until(lambda: browser.named("request"))

            assert {message.name for message in browser.messages} == {"request"}

    with_writer(nats_server, body)


@pytest.mark.parametrize("crash", [False, True])
def test_what_happened_while_the_ui_was_away_is_sent_once(nats_server: NatsServer, ui: UiProcess, crash: bool) -> None:
    async def body(writer: Writer) -> None:
        ui.start()
        async with streaming(ui) as browser:
            await writer.facts(JOINED, FOUND)
            await writer.request(1)
            await writer.lines("one")
            await until(lambda: len(browser.messages) >= 4 and browser.lines_of())
        seen = browser.last_id

        if crash:
            ui.kill()
        else:
            assert ui.stop() == 0
        await writer.facts(STARTED, READY)
        await writer.request(2)
        await writer.lines("two", "three")
        ui.start()
        async with streaming(ui, headers={"Last-Event-ID": seen}) as browser:
            await writer.facts(InstanceProgressed(**WHO, at_ns=30, stage="x", ratio=1))
            await writer.lines("four")
            await until(lambda: len(browser.named("fact")) >= 3 and len(browser.lines_of()) >= 3)

            assert sequences(browser.named("fact")) == [3, 4, 5]
            assert ids([message.data for message in browser.named("request")]) == [2 << 10]
            assert browser.lines_of() == ["two", "three", "four"]
            assert not browser.named("gap", "reset")

    with_writer(nats_server, body)


def test_a_pack_is_continued_in_its_middle(nats_server: NatsServer, ui: UiProcess) -> None:
    async def body(writer: Writer) -> None:
        ui.start()
        async with streaming(ui, topics="logs") as browser:
            await writer.lines("a", "b", "c")
            await until(lambda: len(browser.lines_of()) == 3)
        at_b = next(message.id for message in browser.named("line") if message.data["text"] == "b")

        async with streaming(ui, at_b, topics="logs") as browser:
            await until(lambda: "c" in browser.lines_of())
        ui.stop()
        ui.start()
        async with streaming(ui, at_b, topics="logs") as again:
            await until(lambda: "c" in again.lines_of())

        assert browser.lines_of() == again.lines_of() == ["c"]

    with_writer(nats_server, body)


def test_packed_requests_are_rows_of_their_own(nats_server: NatsServer, ui: UiProcess) -> None:
    async def body(writer: Writer) -> None:
        await writer.request(0)
        await writer.pack(1, 2, 3)
        ui.start()

        newest = ui.get("/api/v1/requests?limit=2")
        older = ui.get(f"/api/v1/requests?limit=3&before={newest['next']}")

        assert [request["request_id"] for request in newest["requests"]] == ["r3", "r2"]
        assert ids(newest["requests"]) == [(2 << 10) + 2, (2 << 10) + 1]
        assert [request["request_id"] for request in older["requests"]] == ["r1", "r0"]
        async with streaming(ui, ui.get("/api/v1/fleet")["resume"], topics="requests") as browser:
            await writer.pack(4, 5)
            await until(lambda: len(browser.requests()) == 2)
            assert browser.requests() == ["r4", "r5"]

    with_writer(nats_server, body)


def test_a_flood_through_a_gateway_is_in_the_table_whole_and_once(
    nats_server: NatsServer, ui: UiProcess, tmp_path: Path
) -> None:
    gateway = GatewayProcess(tmp_path / "gateway", nats_server.url)

    async def body() -> None:
        async with open_herd(nats_server.url) as herd:
            gateway.start()
            ui.start()
            herd.gateway = gateway
            await herd.add_ready_model("m", slots=8)
            sent = await flood(gateway, "m", count=5000)
            await herd.finished(5000, model="m", within_s=30)
            head = await herd.bus.stream_head(REQUESTS)
        await until(lambda: ui.get("/api/v1/fleet")["at"]["HERD_REQUESTS"] >> 10 >= head.last)

        found, before = [], ""
        while True:
            page = ui.get(f"/api/v1/requests?limit=1000{before}")
            found += page["requests"]
            if page["next"] is None:
                break
            before = f"&before={page['next']}"

        assert sorted(request["request_id"] for request in found) == sorted(sent)
        assert len(set(ids(found))) == 5000
        assert head.last < 2500, "there were packs"

    try:
        uvloop.run(body())
    finally:
        gateway.stop()


def test_a_pack_of_requests_is_continued_in_its_middle(nats_server: NatsServer, ui: UiProcess) -> None:
    async def body(writer: Writer) -> None:
        ui.start()
        async with streaming(ui, topics="requests") as browser:
            await writer.pack(1, 2, 3)
            await until(lambda: len(browser.requests()) == 3)
        at_2 = next(message.id for message in browser.messages if message.data["request_id"] == "r2")

        async with streaming(ui, at_2, topics="requests") as browser:
            await until(browser.requests)
        ui.stop()
        await writer.pack(4, 5)
        ui.start()
        async with streaming(ui, at_2, topics="requests") as again:
            await writer.request(6)
            await until(lambda: "r6" in again.requests())

        assert browser.requests() == ["r3"]
        assert again.requests() == ["r3", "r4", "r5", "r6"]
        assert not again.named("gap", "reset")

    with_writer(nats_server, body)


def test_a_flood_of_packs_comes_complete_to_a_client_that_keeps_up(nats_server: NatsServer, tmp_path: Path) -> None:
    ui = UiProcess(nats_server, tmp_path / "ui", recent_bytes="20000")

    async def body(writer: Writer) -> None:
        ui.start()
        resume = ui.get("/api/v1/fleet")["resume"]
        async with streaming(ui, resume, topics="requests") as browser:
            for first in range(0, 6000, 200):
                await writer.pack(*range(first, first + 200))
            await until(lambda: len(browser.requests()) >= 6000, within_s=30)

            assert browser.requests() == [f"r{number}" for number in range(6000)]
            assert not browser.named("gap", "reset")

    try:
        with_writer(nats_server, body)
    finally:
        ui.stop()


def test_too_many_missed_requests_in_few_packs_are_a_reset(nats_server: NatsServer, tmp_path: Path) -> None:
    ui = UiProcess(nats_server, tmp_path / "ui", recent_bytes="5000", replay_limit="300")

    async def body(writer: Writer) -> None:
        ui.start()
        resume = ui.get("/api/v1/fleet")["resume"]
        for first in (0, 200, 400):
            sequence = await writer.pack(*range(first, first + 200))
        await until(lambda: ui.get("/api/v1/fleet")["at"]["HERD_REQUESTS"] >> 10 >= sequence)

        async with streaming(ui, resume, topics="requests") as browser:
            await until(lambda: browser.messages)
            assert browser.messages[0].name == "reset"

    try:
        with_writer(nats_server, body)
    finally:
        ui.stop()


def test_the_larger_of_header_and_query_wins(nats_server: NatsServer, ui: UiProcess) -> None:
    async def body(writer: Writer) -> None:
        await writer.facts(JOINED, FOUND, STARTED)
        ui.start()
        stream_id = ui.get("/api/v1/fleet")["stream_id"]

        async with streaming(
            ui, f"{stream_id}:1.0.0", topics="fleet", headers={"Last-Event-ID": f"{stream_id}:2.0.0"}
        ) as browser:
            await until(lambda: browser.named("fact"))

            assert sequences(browser.named("fact")) == [3]

    with_writer(nats_server, body)


@pytest.mark.parametrize("position", ["0123456789ab:1.0.0", "{stream_id}:99.0.0"])
def test_a_position_that_cannot_be_ours_is_reset(nats_server: NatsServer, ui: UiProcess, position: str) -> None:
    async def body(writer: Writer) -> None:
        await writer.facts(JOINED, FOUND)
        ui.start()
        stream_id = ui.get("/api/v1/fleet")["stream_id"]

        async with streaming(ui, position.format(stream_id=stream_id), topics="fleet") as browser:
            await until(lambda: browser.messages)
            await writer.facts(STARTED)
            await until(lambda: browser.named("fact"))

            assert browser.messages[0].name == "reset"
            assert browser.messages[0].id.startswith(f"{stream_id}:2.")
            assert sequences(browser.named("fact")) == [3]

    with_writer(nats_server, body)


def test_long_replay_comes_complete_and_in_order(nats_server: NatsServer, tmp_path: Path) -> None:
    ui = UiProcess(nats_server, tmp_path / "ui", recent_bytes="5000")

    async def body(writer: Writer) -> None:
        await writer.facts(JOINED)
        ui.start()
        resume = ui.get("/api/v1/fleet")["resume"]
        last = await writer.progress(1500)

        async with streaming(ui, resume, topics="fleet") as browser:
            await until(lambda: len(browser.named("fact")) >= 1500, within_s=20)

            assert sequences(browser.named("fact")) == list(range(2, last + 1))

    try:
        with_writer(nats_server, body)
    finally:
        ui.stop()


def test_client_too_far_behind_reloads_and_lines_leave_a_gap(nats_server: NatsServer, tmp_path: Path) -> None:
    ui = UiProcess(nats_server, tmp_path / "ui", recent_bytes="5000", replay_limit="50")

    async def body(writer: Writer) -> None:
        ui.start()
        resume = ui.get("/api/v1/fleet")["resume"]
        last = await writer.progress(400)
        for number in range(100):
            sequence = await writer.lines(f"{number} " + "x" * 200)
        await until(lambda: ui.get("/api/v1/fleet")["at"]["HERD_EVENTS"] == last)
        await until(lambda: ui.get("/api/v1/fleet")["at"]["HERD_LOGS"] >> 10 >= sequence)

        async with streaming(ui, resume, topics="fleet") as browser:
            await until(lambda: browser.messages)
            assert browser.messages[0].name == "reset"
        async with streaming(ui, resume, topics="logs") as browser:
            await until(lambda: browser.lines_of() and browser.lines_of()[-1].startswith("99 "))

            gap = browser.messages[0]
            assert (gap.name, gap.data["stream"]) == ("gap", LOGS)
            assert gap.data["last"] + 1 == browser.named("line")[0].data["id"] >> 10

    try:
        with_writer(nats_server, body)
    finally:
        ui.stop()


def test_client_that_does_not_read_costs_no_memory_and_learns_of_its_gap(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    ui = UiProcess(nats_server, tmp_path / "ui", recent_bytes="200000", replay_limit="20")

    async def body(writer: Writer) -> None:
        ui.start()
        assert ui.process is not None
        process = psutil.Process(ui.process.pid)
        host, port = ui.address.removeprefix("http://").split(":")
        reader, connection = await asyncio.open_connection(host, int(port), limit=4096)
        connection.write(b"GET /api/v1/stream?topics=logs HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        await reader.readuntil(b": llamaherd\n\n")
        before = process.memory_info().rss

        # 60 MB: more than the kernel's buffers for the connection take.
        for _ in range(1000):
            sequence = await writer.lines("x" * 60_000)
        await until(lambda: ui.get("/api/v1/fleet")["at"]["HERD_LOGS"] >> 10 >= sequence, within_s=30)

        assert process.memory_info().rss - before < 30 * 2**20
        received = b""
        deadline = time.monotonic() + 30
        while b"event: gap" not in received[-200_000:]:
            assert time.monotonic() < deadline, "no gap"
            received += await reader.read(1 << 16)
        connection.close()
        await until(lambda: ui.get("/readyz")["ready"])

    try:
        with_writer(nats_server, body)
    finally:
        ui.stop()


def test_what_retention_has_deleted_is_told_as_a_gap(nats_server: NatsServer, ui: UiProcess) -> None:
    async def body(writer: Writer) -> None:
        await writer.progress(20)
        for number in range(1, 11):
            await writer.lines(str(number))
        await writer.pack(1, 2, 3)
        await writer.pack(4, 5, 6)
        await writer.pack(7, 8, 9)
        nc = await nats.connect(nats_server.url)
        for stream, first in ((EVENTS, 11), (REQUESTS, 3), (LOGS, 6)):
            await nc.jetstream().purge_stream(stream, seq=first)
        await nc.close()
        ui.start()
        stream_id = ui.get("/api/v1/fleet")["stream_id"]

        async with streaming(ui, f"{stream_id}:3.{(1 << 10) | 1}.{(2 << 10) | 1023}") as browser:
            await until(lambda: len(browser.named("fact")) == 10 and len(browser.lines_of()) == 5)
            await until(lambda: len(browser.requests()) == 3)

            gaps = [message.data for message in browser.named("gap")]
            assert {"stream": EVENTS, "first": 4, "last": 10} in gaps
            assert {"stream": REQUESTS, "first": 2, "last": 2} in gaps
            assert {"stream": LOGS, "first": 3, "last": 5} in gaps
            assert browser.requests() == ["r7", "r8", "r9"]
            assert sequences(browser.named("fact")) == list(range(11, 21))
            assert browser.lines_of() == ["6", "7", "8", "9", "10"]
            assert browser.messages[0].name == "gap"

    with_writer(nats_server, body)


def test_deleted_projection_is_rebuilt_to_the_same_answers(nats_server: NatsServer, ui: UiProcess) -> None:
    async def body(writer: Writer) -> None:
        await writer.facts(JOINED, FOUND, STARTED, READY)
        await writer.progress(600)
        for number in range(20):
            await writer.request(number)
        ui.start()
        paths = ["/api/v1/models", "/api/v1/events?limit=1000", "/api/v1/requests"]
        before = [ui.get(path) for path in paths]
        resume = ui.get("/api/v1/fleet")["resume"]

        ui.stop()
        ui.forget()
        ui.start()

        assert [ui.get(path) for path in paths] == before
        async with streaming(ui, resume, topics="fleet,requests") as browser:
            await writer.facts(STARTED)
            await until(lambda: browser.named("fact"))
            assert sequences(browser.named("fact")) == [605]
            assert not browser.named("reset", "gap")

    with_writer(nats_server, body)


def test_streams_made_anew_reset_every_page(nats_server: NatsServer, ui: UiProcess) -> None:
    async def body(writer: Writer) -> None:
        await writer.facts(JOINED, FOUND, STARTED)
        ui.start()
        before = ui.get("/api/v1/fleet")

        async with streaming(ui, before["resume"], topics="fleet") as browser:
            nc = await nats.connect(nats_server.url)
            for stream in (EVENTS, REQUESTS, LOGS):
                await nc.jetstream().delete_stream(stream)
            await nc.close()
            await writer.bus.ensure_streams(STREAMS)
            await until(lambda: browser.named("reset"), within_s=20)
            await writer.facts(FOUND)
            await until(lambda: ui.get("/api/v1/fleet")["stream_id"] != before["stream_id"], within_s=20)
            await until(lambda: ui.get("/api/v1/fleet")["at"]["HERD_EVENTS"] == 1, within_s=20)

        after = ui.get("/api/v1/fleet")
        assert after["nodes"] == []
        assert [model["instance"] for model in after["models"]] == [None]

    with_writer(nats_server, body)


def test_options_of_a_load_go_to_the_supervisor(nats_server: NatsServer, ui: UiProcess) -> None:
    async def body(writer: Writer) -> None:
        asked: list[LoadModel] = []

        async def answer(command: LoadModel) -> Accepted:
            asked.append(command)
            return Accepted(node="n1", model=command.model, state="ready", sequence=7, replaces=3)

        await writer.facts(JOINED, FOUND)
        served = await writer.bus.serve(writer.bus.subjects.command("supervisor", "load", node="n1"), LoadModel, answer)
        ui.start()
        async with httpx.AsyncClient(base_url=ui.address) as client:
            path = "/api/v1/models/cria/load"
            accepted = await client.post(path, json={"context_tokens": 4096, "gpu_layers": "all"})
            wrong = [await client.post(path, json=body) for body in ({"context_tokens": 0}, {"mmproj": "/etc/x"}, [])]
        await served.drain()

        assert accepted.json()["replaces"] == 3
        assert asked == [LoadModel(model="cria", options=LoadOptions(context_tokens=4096, gpu_layers="all"))]
        assert [each.status_code for each in wrong] == [400, 400, 400]

    with_writer(nats_server, body)


def test_a_reload_is_asked_of_every_supervisor(nats_server: NatsServer, ui: UiProcess) -> None:
    async def body(writer: Writer) -> None:
        asked: list[ReloadConfiguration] = []
        restart = Restart(model="cria", index=0, why=["slots: 1 -> 2"])

        async def answer(command: ReloadConfiguration) -> Reloaded:
            asked.append(command)
            if len(asked) > 1:
                raise Rejected("llamaherd.yaml:1:1: a mistake")
            return Reloaded(node="n1", restarts=[restart], offered=[], gone=[], later=[])

        await writer.facts(JOINED, FOUND)
        subject = writer.bus.subjects.command("supervisor", "reload", node="n1")
        served = await writer.bus.serve(subject, ReloadConfiguration, answer)
        ui.start()
        async with httpx.AsyncClient(base_url=ui.address) as client:
            path = "/api/v1/configuration/reload"
            reloaded = await client.post(path)
            refused = await client.post(path, json={"dry_run": True, "text": "models: {}"})
            wrong = await client.post(path, json={"text": "models: {}"})
        await served.drain()

        assert [one["restarts"] for one in reloaded.json()] == [[msgspec.to_builtins(restart)]]
        assert (refused.status_code, refused.json()["error"]["message"]) == (400, "llamaherd.yaml:1:1: a mistake")
        assert (wrong.status_code, "only for `dry_run`" in wrong.text) == (400, True)
        assert asked == [ReloadConfiguration(), ReloadConfiguration(dry_run=True, text="models: {}")]

    with_writer(nats_server, body)


def test_commands_go_to_the_supervisor_and_refusals_come_back(nats_server: NatsServer, ui: UiProcess) -> None:
    async def body(writer: Writer) -> None:
        asked: list[str] = []

        async def answer(command: LoadModel) -> Accepted:
            asked.append(command.model)
            if len(asked) > 1:
                raise Conflict("cria is just being unloaded")
            return Accepted(node="n1", model=command.model, state="loading", sequence=7)

        await writer.facts(JOINED, FOUND)
        served = await writer.bus.serve(writer.bus.subjects.command("supervisor", "load", node="n1"), LoadModel, answer)
        ui.start()
        async with httpx.AsyncClient(base_url=ui.address) as client:
            accepted = await client.post("/api/v1/models/cria/load")
            refused = await client.post("/api/v1/models/cria/load?node=n1")
            unknown = await client.post("/api/v1/models/nope/load")
            nobody = await client.post("/api/v1/models/cria/unload")
            foreign = await client.post("/api/v1/models/cria/load", headers={"Sec-Fetch-Site": "cross-site"})
        await served.drain()

        assert (accepted.status_code, accepted.json()) == (
            202,
            {"node": "n1", "model": "cria", "index": 0, "state": "loading", "sequence": 7, "replaces": 0},
        )
        assert asked == ["cria", "cria"]
        assert (refused.status_code, refused.json()["error"]["kind"]) == (409, "conflict")
        assert (unknown.status_code, unknown.json()["error"]["kind"]) == (404, "not_found")
        assert "known are: cria" in unknown.json()["error"]["message"]
        assert (nobody.status_code, nobody.json()["error"]["kind"]) == (503, "unavailable")
        assert foreign.status_code == 403

    with_writer(nats_server, body)


def test_reset_goes_to_the_node_that_has_the_model(nats_server: NatsServer, ui: UiProcess) -> None:
    async def body(writer: Writer) -> None:
        async def answer(command: ResetModel) -> ModelReset:
            return ModelReset(node="n1", model=command.model, state="failed", forgotten=True, starts=True, sequence=7)

        await writer.facts(JOINED, FOUND)
        subject = writer.bus.subjects.command("supervisor", "reset", node="n1")
        served = await writer.bus.serve(subject, ResetModel, answer)
        ui.start()
        async with httpx.AsyncClient(base_url=ui.address) as client:
            done = await client.post("/api/v1/models/cria/reset")
            unknown = await client.post("/api/v1/models/nope/reset")
        await served.drain()

        assert (done.status_code, done.json()["model"], done.json()["starts"]) == (202, "cria", True)
        assert unknown.status_code == 404

    with_writer(nats_server, body)


def test_every_error_has_a_sentence_a_kind_and_an_id(shared_ui: UiProcess) -> None:
    ui = shared_ui
    wanted = {
        ("GET", "/api/v1/nope"): (404, "not_found"),
        ("GET", "/assets/gone.js"): (404, "not_found"),
        ("GET", "/api/v1/requests?limit=x"): (400, "rejected"),
        ("GET", "/api/v1/requests?limit=100000"): (400, "rejected"),
        ("GET", "/api/v1/events?after=-1"): (400, "rejected"),
        ("GET", "/api/v1/logs?min_level=loud"): (400, "rejected"),
        ("GET", "/api/v1/stream?after=x"): (400, "rejected"),
        ("GET", "/api/v1/stream?topics=x"): (400, "rejected"),
        ("DELETE", "/api/v1/fleet"): (405, "rejected"),
        ("GET", "/api/v1/logs"): (503, "unavailable"),
        ("GET", "/api/v1/metrics"): (503, "unavailable"),
    }

    answers = {key: httpx.request(key[0], ui.address + key[1]) for key in wanted}
    stranger = httpx.get(f"{ui.address}/api/v1/fleet", headers={"Host": "evil.example"})

    for key, answer in answers.items():
        error = answer.json()["error"]
        assert (answer.status_code, error["kind"]) == wanted[key], key
        assert error["message"]
        assert error["id"]
    assert "`limit`" in answers["GET", "/api/v1/requests?limit=x"].json()["error"]["message"]
    assert stranger.status_code == 400
    assert "content-security-policy" in stranger.headers


def test_docs_need_no_other_host(shared_ui: UiProcess) -> None:
    ui = shared_ui

    page = httpx.get(f"{ui.address}/api/docs")
    schema = ui.get("/api/v1/openapi.json")

    assert page.headers["content-type"].startswith("text/html")
    assert not re.findall(r"(?:src|href|action)=\"(?:https?:)?//", page.text)
    assert "<script" not in page.text
    for path in set(re.findall(r"(?:src|href)=\"(/[^\"]*)\"", page.text)):
        assert httpx.get(ui.address + path).status_code == 200, path
    assert {"/api/v1/fleet", "/api/v1/models/{model}/load", "/api/v1/stream", "/readyz"} <= set(schema["paths"])
    assert all(path in page.text for path in schema["paths"])


@pytest.mark.skipif(not (STATIC / "index.html").exists(), reason="the web app was not built (LLAMAHERD_SKIP_UI)")
def test_web_app_is_served_and_its_hashed_files_are_kept(shared_ui: UiProcess) -> None:
    ui = shared_ui

    index, page = httpx.get(f"{ui.address}/"), httpx.get(f"{ui.address}/models/cria")
    script = re.search(r"src=\"\.?/(assets/[^\"]+\.js)\"", index.text)

    assert index.headers["cache-control"] == "no-cache"
    assert page.text == index.text
    assert not re.findall(r"(?:src|href)=\"(?:https?:)?//", index.text)
    assert script is not None
    asset = httpx.get(f"{ui.address}/{script[1]}")
    assert asset.headers["content-type"].startswith("text/javascript")
    assert "immutable" in asset.headers["cache-control"]
    assert httpx.get(f"{ui.address}/../settings.py").status_code == 404


def test_stop_ends_open_streams_at_once(nats_server: NatsServer, ui: UiProcess) -> None:
    async def body(_: Writer) -> None:
        ui.start()
        async with streaming(ui) as browser:
            stopping = time.monotonic()
            code = await asyncio.to_thread(ui.stop)

            assert code == 0
            assert time.monotonic() - stopping < 3
            await until(lambda: browser.messages and browser.messages[-1].name == "restarting")

    with_writer(nats_server, body)


def test_streams_of_clients_that_left_are_given_back(nats_server: NatsServer, tmp_path: Path) -> None:
    ui = UiProcess(nats_server, tmp_path / "ui", max_streams="2")

    async def body(_: Writer) -> None:
        ui.start()
        async with streaming(ui), streaming(ui):
            refused = ui.ask("/api/v1/stream")
            assert (refused.status_code, refused.json()["error"]["kind"]) == (503, "unavailable")
        for _ in range(5):
            await until(lambda: _is_streaming(ui), what="a stream is free again")

    try:
        with_writer(nats_server, body)
    finally:
        ui.stop()


def _is_streaming(ui: UiProcess) -> bool:
    with httpx.stream("GET", f"{ui.address}/api/v1/stream") as answer:
        return answer.status_code == 200


def test_silent_stream_says_that_it_lives(nats_server: NatsServer, tmp_path: Path) -> None:
    ui = UiProcess(nats_server, tmp_path / "ui", comment_interval_s="0.1")

    async def body(_: Writer) -> None:
        ui.start()
        async with streaming(ui, topics="requests") as browser:
            await until(lambda: browser.comments >= 3)

    try:
        with_writer(nats_server, body)
    finally:
        ui.stop()


def test_taken_port_is_one_sentence_and_a_failure(nats_server: NatsServer, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        environment = os.environ | {
            "LLAMAHERD_DATA_DIR": str(tmp_path),
            "LLAMAHERD_NATS_URL": nats_server.url,
            "LLAMAHERD_UI_PORT": str(port),
        }
        done = subprocess.run(
            [sys.executable, "-m", "llamaherd_ui"], env=environment, capture_output=True, text=True, timeout=30
        )

    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_ui_outlives_a_killed_nats_server(nats_server: NatsServer, ui: UiProcess) -> None:
    async def body(writer: Writer) -> None:
        await writer.facts(JOINED)
        ui.start()
        async with streaming(ui, topics="fleet") as browser:
            nats_server.kill()
            assert ui.get("/api/v1/fleet")["nodes"]
            nats_server.start()
            await writer.facts(FOUND)
            await until(lambda: browser.named("fact"), within_s=20)

            assert sequences(browser.named("fact")) == [2]
            assert not browser.named("reset", "gap")

    with_writer(nats_server, body)

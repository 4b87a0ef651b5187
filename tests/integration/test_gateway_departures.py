"""Clients that leave at any moment, by any route: the slot is free at once, and the request recorded as cancelled."""

import asyncio
import itertools
import json
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final

import pytest

from harness.gateway import GatewayProcess, Herd, open_herd, transport_of
from harness.nats import NatsServer
from llamaherd_gateway.routes import ROUTES

pytestmark = pytest.mark.integration

FREED_S: Final = 0.25
"""From the client's leaving to the slot's being free."""
EVERYTHING: Final = ("completion", "embedding", "insert", "tools", "audio")
FORM: Final = (
    b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n'
    b'--b\r\nContent-Disposition: form-data; name="stream"\r\n\r\n%b\r\n'
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF\r\n--b--\r\n'
)
BODIES: Final[dict[str, dict[str, Any]]] = {
    "/infill": {"input_prefix": "a", "input_suffix": "b"},
    "/embedding": {"content": "x"},
    "/embeddings": {"content": "x"},
    "/v1/systemone": {"input": "x"},
    "/api/embed": {"input": "x"},
    "/api/embeddings": {"prompt": "x"},
}
"""Of the routes whose example has no body, or one that generates nothing."""
LENGTHS: Final = ("max_tokens", "max_output_tokens", "n_predict")
STREAMED: Final = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/api/chat",
    "/api/generate",
    "/api/v1/chat",
    "/api/v0/chat/completions",
    "/api/v0/completions",
    "/completion",
    "/completions",
    "/infill",
)
CHAT: Final = b"another chat"
FRAGILE: Final = "fragile"
"""Its engine does not survive an abort."""
GENERATING: Final = tuple(route.path for route in ROUTES if route.generates)
EXAMPLES: Final = {route.path: route.example for route in ROUTES}


class World:
    """One gateway with a herd, for all tests of this module."""

    def __init__(self, runner: asyncio.Runner, gateway: GatewayProcess, herd: Herd) -> None:
        self._runner, self.gateway, self.herd = runner, gateway, herd
        self._connections: list[asyncio.StreamWriter] = []
        self._left: Counter[str] = Counter()
        """Clients that left a model's answer."""

    def run(self, scenario: Coroutine[Any, Any, None]) -> None:
        self._runner.run(self._run(scenario))

    async def _run(self, scenario: Coroutine[Any, Any, None]) -> None:
        try:
            await asyncio.wait_for(scenario, 60)
        finally:
            for writer in self._connections:
                writer.transport.abort()
            self._connections.clear()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.gateway.port)
        self._connections.append(writer)
        return reader, writer

    async def ask(self, path: str, model: str, *, stream: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await self.connect()
        writer.write(request_to(path, model, stream=stream))
        return reader, writer

    async def until(self, model: str, **wanted: int) -> dict[str, Any]:
        """What the fake llama-server tells, once it tells this."""
        deadline = time.monotonic() + 5
        while True:
            state = await self.herd.state(model)
            if all(state[name] == value for name, value in wanted.items()):
                return state
            assert time.monotonic() < deadline, f"{model} is not seen with {wanted}: {state}"
            await asyncio.sleep(0.01)

    async def until_stalled(self, model: str) -> None:
        """All buffers on the way are full: llama-server gets rid of no more tokens."""
        last, said = -1, 0
        while last != said:
            last, said = said, (await self.herd.state(model))["said"]
            await asyncio.sleep(0.2)

    async def add_model(self, model: str, **switches: Any) -> None:
        """One that can do everything, unless it is there."""
        if model not in self.herd.processes:
            await self.herd.add_ready_model(model, capabilities=EVERYTHING, **switches)

    async def until_freed(self, model: str, left_s: float) -> None:
        """One more generation was stopped, within `FREED_S` of `left_s`."""
        self._left[model] += 1
        state = await self.until(model, cancelled=self._left[model], active=0)
        print(f"slot of {model} free after {(state['freed_s'] - left_s) * 1e3:.1f} ms")
        assert state["freed_s"] - left_s < FREED_S


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    nats = NatsServer(tmp_path_factory.mktemp("nats")).start()
    models = {FRAGILE: {"drain_on_abort": True}}
    gateway = GatewayProcess(tmp_path_factory.mktemp("gateway"), nats.url, models=models).start()
    with asyncio.Runner() as runner:
        opened = open_herd(nats.url, gateway)
        herd = runner.run(opened.__aenter__())
        yield World(runner, gateway, herd)
        runner.run(opened.__aexit__(None, None, None))
    gateway.stop()
    nats.stop()


def request_to(path: str, model: str, *, stream: bool) -> bytes:
    example = EXAMPLES.get(path, "")
    if path.endswith("/transcriptions"):
        content = FORM % (model.encode(), b"true" if stream else b"false")
        kind = "multipart/form-data; boundary=b"
    else:
        body = {**(BODIES.get(path) or json.loads(example)), "model": model, "stream": stream}
        body |= {name: 10_000 for name in LENGTHS if name in body}
        content, kind = json.dumps(body).encode(), "application/json"
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Type: {kind}", f"Content-Length: {len(content)}"]
    return "\r\n".join([*lines, "", ""]).encode() + content


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()


async def half_close(writer: asyncio.StreamWriter) -> None:
    """Says that nothing more will come; goes on reading."""
    writer.write_eof()


async def reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


WAYS: Final[dict[str, Callable[[asyncio.StreamWriter], Coroutine[Any, Any, None]]]] = {
    "closes": close,
    "half-closes": half_close,
    "resets": reset,
}


@pytest.mark.parametrize("path", GENERATING)
def test_a_client_gone_before_the_first_byte_frees_the_slot_whatever_the_route(world: World, path: str) -> None:
    """T20, T21, T22, T23: LiteLLM listened for nobody before the first token, for plain answers never, and mended
    one route only; paddler's five tests of half-closed sockets."""

    async def scenario() -> None:
        model = "before-the-first-byte"
        await world.add_model(model, delay_first_token_s=30)
        for stream, leave in itertools.product((False, True), WAYS.values()):
            _, writer = await world.ask(path, model, stream=stream)
            await world.until(model, active=1)
            at_s = time.monotonic()
            await leave(writer)
            await world.until_freed(model, at_s)

        events = await world.herd.finished(6, model=model, route=path)
        assert {(event.outcome, event.status) for event in events} == {("cancelled", 499)}
        assert sum(event.streamed for event in events) in (0, 3)

    world.run(scenario())


@pytest.mark.parametrize("path", STREAMED)
def test_a_client_gone_in_the_middle_of_a_stream_frees_the_slot_whatever_the_route(world: World, path: str) -> None:
    """T19, T22, T23: llama-swap, llama.cpp's router and LiteLLM let the model go on for a client that had left."""

    async def scenario() -> None:
        model = "in-the-middle"
        await world.add_model(model, tokens=10_000, delay_token_s=0.02)
        for leave in WAYS.values():
            reader, writer = await world.ask(path, model, stream=True)
            head = (await asyncio.wait_for(reader.readuntil(b"tok2"), 5)).partition(b"\r\n\r\n")[0].lower()
            assert b"x-accel-buffering: no" in head, head
            at_s = time.monotonic()
            await leave(writer)
            await world.until_freed(model, at_s)

        events = await world.herd.finished(3, model=model, route=path)
        assert {(event.outcome, event.status, event.streamed) for event in events} == {("cancelled", 200, True)}

    world.run(scenario())


def test_a_client_gone_with_its_request_just_sent_frees_the_slot(world: World) -> None:
    """T20: whoever listens only once it has something to send misses the client that left at once."""

    async def scenario() -> None:
        model = "just-sent"
        await world.herd.add_ready_model(model, delay_first_token_s=30)
        for count in range(1, 11):
            _, writer = await world.ask("/v1/chat/completions", model, stream=count % 2 == 0)
            writer.write_eof()
            writer.close()
            # It may not even have come as far as a llama-server.
            assert len(await world.herd.finished(count, model=model)) == count
            await world.until(model, active=0)

        events = await world.herd.finished(10, model=model)
        assert {event.outcome for event in events} == {"cancelled"}

    world.run(scenario())


def test_a_client_gone_while_its_text_is_counted_leaves_no_question_behind(world: World) -> None:
    """T20: Ollama's dialect asks llama-server how long a conversation is before it has it answered."""

    async def scenario() -> None:
        model = "counted"
        await world.herd.add_ready_model(model, delay_question_s=30)
        messages = [{"role": role, "content": "word " * 300} for role in ("user", "assistant", "user")]
        content = json.dumps({"model": model, "messages": messages}).encode()
        _, writer = await world.connect()
        writer.write(
            b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(content) + content
        )
        await world.until(model, asking=1)

        at_s = time.monotonic()
        writer.close()
        await world.until(model, asking=0, active=0, requests=0)
        assert time.monotonic() - at_s < FREED_S
        (event,) = await world.herd.finished(1, model=model)
        assert event.outcome == "cancelled"

    world.run(scenario())


@pytest.mark.parametrize(
    ("name", "rest"),
    [
        ("one", [CHAT]),
        ("many", [CHAT] * 12),
        ("a-list", [CHAT, b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"]),
        ("uploads", [b"POST /api/show HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}", CHAT]),
    ],
)
def test_a_client_gone_with_requests_in_its_pipeline_has_none_of_them_answered(
    world: World, name: str, rest: list[bytes]
) -> None:
    """T21, T23: also when so many wait that the gateway has stopped reading their connection."""

    async def scenario() -> None:
        model = f"pipelined-{name}"
        await world.herd.add_ready_model(model, delay_first_token_s=30)
        _, writer = await world.connect()
        asked = request_to("/v1/chat/completions", model, stream=False)
        writer.write(asked + b"".join(asked if part == CHAT else part for part in rest))
        await world.until(model, active=1)

        at_s = time.monotonic()
        writer.close()
        await world.until_freed(model, at_s)
        # What it wanted besides was not even read: not how many do so, nor for which model.
        (event,) = await world.herd.finished(1, model=model)
        assert event.outcome == "cancelled"
        assert (await world.herd.state(model))["requests"] == 1

    world.run(scenario())


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat", "/v1/messages"])
def test_a_client_that_stopped_reading_and_half_closes_frees_the_slot(world: World, path: str) -> None:
    """T23: what is on the way to it can never be delivered, so nothing may wait for that."""

    async def scenario() -> None:
        model = "stalled" + path.replace("/", "-")
        await world.herd.add_ready_model(model, text=" ".join(["x" * 100_000] * 200))
        _, writer = await world.ask(path, model, stream=True)
        transport_of(writer).pause_reading()
        await world.until(model, active=1)
        await world.until_stalled(model)

        at_s = time.monotonic()
        writer.write_eof()
        await world.until_freed(model, at_s)
        (event,) = await world.herd.finished(1, model=model)
        assert event.outcome == "cancelled"

    world.run(scenario())


def test_a_client_gone_with_half_its_request_sent_is_recorded(world: World) -> None:
    """T20: there is nothing to stop yet, and nothing may be begun."""

    async def scenario() -> None:
        model = "half-sent"
        await world.herd.add_ready_model(model)
        before = (await world.herd.state(model))["requests"]
        _, writer = await world.connect()
        writer.write(request_to("/v1/rerank", model, stream=True)[:-5])
        await writer.drain()
        writer.close()
        event = (await world.herd.finished(1, model="", route="/v1/rerank"))[0]
        assert (event.outcome, event.status) == ("cancelled", 499)
        assert (await world.herd.state(model))["requests"] == before

    world.run(scenario())


@pytest.mark.parametrize("stream", [True, False])
def test_an_engine_that_an_abort_breaks_is_not_aborted_and_its_slot_stays_taken(world: World, stream: bool) -> None:
    """T25."""

    async def scenario() -> None:
        await world.add_model(FRAGILE, slots=1, die_on_cancel=True, delay_token_s=0.02, tokens=30)
        before = await world.herd.state(FRAGILE)
        _, left = await world.ask("/v1/chat/completions", FRAGILE, stream=stream)
        await world.until(FRAGILE, active=1)
        left.close()
        reader, _ = await world.ask("/v1/chat/completions", FRAGILE, stream=False)

        taken = await world.until(FRAGILE, requests=before["requests"] + 2)
        head = await reader.readuntil(b"\r\n\r\n")
        after = await world.until(FRAGILE, active=0)

        assert taken["active"] <= 1
        assert taken["said"] >= before["said"] + 30
        assert b" 200 OK" in head
        assert (after["cancelled"], after["pid"]) == (0, before["pid"])

    world.run(scenario())

"""Nonsense of every kind to a real gateway and a real ui: never a 500, never a hang, and afterwards they serve."""

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from harness.described_api import fuzz
from harness.gateway import GatewayProcess, Herd, open_herd
from harness.mangled import MANAGING, MODEL, NUMBERS, bodies_for, seeds_of
from harness.nats import NatsServer
from harness.ui import UiProcess
from llamaherd_gateway.routes import PAGES, ROUTES

pytestmark = pytest.mark.integration

RECEIVE_S: Final = 1.0
PATIENCE_S: Final = RECEIVE_S + 2.5
"""A second for the gateway to look, the rest for this machine to be busy."""
EVERYTHING: Final = ("completion", "embedding", "insert", "tools", "vision", "audio", "thinking")
UPSTREAM: Final = (
    f"/upstream/{MODEL}/v1/chat/completions",
    f"/upstream/{MODEL}/completion",
    "/upstream/none/completion",
)
TAKE_BODIES: Final = (*[route.path for route in ROUTES], *MANAGING, *UPSTREAM)
LOOK: Final = (
    *[f"{page.method} {re.sub('{.*}', 'x', page.path)}" for page in PAGES],
    *[f"GET /{path}?model={MODEL}" for path in ("props", "slots", "metrics", "lora-adapters")],
    f"GET /upstream/{MODEL}/props",
    f"DELETE /upstream/{MODEL}/x",
    "DELETE /v1/models/none",
    f"POST /api/blobs/sha256:{'0' * 64}",
    f"HEAD /api/blobs/sha256:{'0' * 64}",
    "GET /internal/blobs/x",
    "GET /api/v1/models/download/status/x",
    "OPTIONS /v1/models",
    "GET /upstream//",
    "GET /",
)
PIECES: Final = (
    b"\r\n", b"\n", b"\0", b"%", b"/../", b"?", b"#", b"%00", b"%ff", b"Content-Length: 3\r\n", b"Host: x\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n", b"Content-Encoding: gzip\r\n", b"Origin: null\r\n",
    b"Connection: close\r\n", b"Upgrade: h2c\r\nConnection: upgrade\r\n", b"Authorization: Basic \xff\r\n",
    b"traceparent: 00-0-0-0\r\n", b"x-llamaherd-progress: 1\r\n", b"anthropic-version: x\r\n", b"Accept: \xff\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
)  # fmt: skip
"""What is put into the middle of requests."""

Scenario = Callable[[int], Coroutine[Any, Any, None]]
Run = Callable[[Scenario], None]


def request(method: str, path: str, body: bytes) -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body


@st.composite
def mangled_requests(draw: st.DrawFn) -> bytes:
    """A valid request with bytes changed, cut out, doubled, or others put in."""
    line = draw(st.sampled_from([f"POST {path}" for path in TAKE_BODIES] + list(LOOK)))
    method, path = line.split()
    body = json.dumps(seeds_of(path)[0]).encode() if method == "POST" else b""
    data = request(method, path, body)
    for kind, where, what in draw(st.lists(st.tuples(st.integers(0, 4), NUMBERS, NUMBERS), min_size=1, max_size=3)):
        at, upto = where % (len(data) + 1), where % (len(data) + 1) + what % 20
        match kind:
            case 0:
                data = data[:at] + bytes([what % 256]) + data[at + 1 :]
            case 1:
                data = data[:at] + data[upto:]
            case 2:
                data = data[:at] + data[at:upto] + data[at:]
            case 3:
                data = data[:at] + data
            case _:
                data = data[:at] + PIECES[what % len(PIECES)] + data[at:]
    return data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, shared_nats_server: NatsServer) -> Iterator[Run]:
    """Runs a scenario with the port of a gateway that has one model; it must be as well afterwards as before."""
    impatient = {"receive_timeout_s": RECEIVE_S, "load_timeout_s": 1, "ask_timeout_s": 0.5}
    gateway = GatewayProcess(tmp_path_factory.mktemp("gateway"), shared_nats_server.url, **impatient).start()
    with asyncio.Runner() as runner:
        opened = open_herd(shared_nats_server.url, gateway)
        herd: Herd = runner.run(opened.__aenter__())
        runner.run(herd.add_ready_model(MODEL, capabilities=EVERYTHING, slots=64, tokens=3))
        yield lambda scenario: runner.run(scenario(gateway.port))
        runner.run(opened.__aexit__(None, None, None))
    assert gateway.process is not None
    assert gateway.process.poll() is None
    log = gateway.log.read_text()
    gateway.stop()
    assert "Traceback" not in log, log[-4000:]


async def answer_to(port: int, data: bytes) -> bytes:
    """What came back, at least the first head; nothing when the connection was closed. Fails when nothing happens."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    got = b""
    began = time.monotonic()
    try:
        while part := await asyncio.wait_for(reader.read(65536), 0.2 if got else PATIENCE_S):
            got += part
    except TimeoutError:
        assert got, f"nothing came within {time.monotonic() - began:.1f} s: {data!r}"
    except ConnectionError:
        pass
    finally:
        writer.transport.abort()
    return got


async def check(port: int, requests: Sequence[bytes]) -> None:
    """All at once: every one is answered, none with a 500, and then a good one is served."""
    answers: list[Awaitable[bytes]] = [answer_to(port, data) for data in requests]
    for data, got in zip(requests, await asyncio.gather(*answers), strict=True):
        assert not re.search(rb"HTTP/1\.1 500", got), (data, got)
    good = request("POST", "/v1/chat/completions", json.dumps(seeds_of("/v1/chat/completions")[0]).encode())
    assert (await answer_to(port, good)).startswith(b"HTTP/1.1 200")


fuzzed = settings(
    max_examples=4, deadline=None, phases=(Phase.generate, Phase.target), suppress_health_check=list(HealthCheck)
)
"""Many requests to an example: most of the time goes by in waiting for those that are not complete."""


@fuzzed
@given(requests=st.lists(mangled_requests(), min_size=60, max_size=100))
def test_mangled_bytes_are_answered_or_closed(run: Run, requests: list[bytes]) -> None:
    run(lambda port: check(port, requests))


@fuzzed
@given(asked=st.lists(bodies_for(TAKE_BODIES), min_size=60, max_size=100))
def test_mangled_bodies_are_served_or_refused(run: Run, asked: list[tuple[str, bytes]]) -> None:
    requests = [request("DELETE" if path == "/api/delete" else "POST", path, body) for path, body in asked]

    run(lambda port: check(port, requests))


def test_a_body_that_does_not_come_is_given_up_on_every_kind_of_route(run: Run) -> None:
    """Also where no model is asked: uvicorn waits for ever."""
    lines = ("POST /v1/chat/completions", "POST /api/show", "GET /v1/models", f"POST /api/blobs/sha256:{'0' * 64}")

    async def scenario(port: int) -> None:
        half = [request(*line.split(), b'{"model": "m"}')[:-3] for line in lines]  # type: ignore[call-arg]
        for line, got in zip(lines, await asyncio.gather(*[answer_to(port, data) for data in half]), strict=True):
            assert got.startswith(b"HTTP/1.1 408"), (line, got)
            assert b"did not arrive within 1 s" in got, (line, got)

    run(scenario)


def test_the_uis_api_survives_schemathesis(nats_server: NatsServer, tmp_path: Path) -> None:
    """Its OpenAPI document says what may be asked; no answer may be a 500, whatever is."""
    ui = UiProcess(nats_server, tmp_path / "ui").start()
    try:
        # That a service is not running is an honest answer here, where none is.
        fuzz(
            f"{ui.address}/api/v1/openapi.json",
            tmp_path,
            *("--phases", "coverage,fuzzing", "--max-examples", "15", "--exclude-path", "/api/v1/stream"),
        )
        assert httpx.get(f"{ui.address}/readyz").status_code == 200
    finally:
        ui.stop()

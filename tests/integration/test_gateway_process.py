"""The gateway's process: starting, stopping, losing its neighbours, and clients that go silent."""

import asyncio
import contextlib
import http.server
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from harness.deadline import until, wait_until
from harness.gateway import NODE, GatewayProcess, Herd, flood, free_port, run_in_herd
from harness.nats import NatsServer
from llamaherd_shared.streams import REQUESTS
from llamaherd_shared.trace import trace_id_of

pytestmark = pytest.mark.integration


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path / "nats").start()
    yield server
    server.stop()


@pytest.fixture
def start(tmp_path: Path, nats: NatsServer) -> Iterator[Callable[..., GatewayProcess]]:
    """Starts gateways that end with the test."""
    with contextlib.ExitStack() as stack:

        def starter(**settings: Any) -> GatewayProcess:
            process = GatewayProcess(tmp_path / "gateway", nats.url, **settings).start()
            stack.callback(process.stop)
            return process

        yield starter


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "hello"}], **fields}


def run(nats: NatsServer, gateway: GatewayProcess, scenario: Callable[[Herd], Any]) -> None:
    run_in_herd(nats.url, gateway, scenario)


async def send(gateway: GatewayProcess, body: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    content = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(content) + content
    )
    return reader, writer


def test_a_stop_lets_a_stream_finish(nats: NatsServer, start: Callable[..., GatewayProcess]) -> None:
    gateway = start()

    async def scenario(herd: Herd) -> None:
        await herd.add_ready_model("m", tokens=10, delay_token_s=0.1)
        reader, writer = await send(gateway, chat(stream=True))
        await reader.readuntil(b"tok1")
        stopping = asyncio.create_task(asyncio.to_thread(gateway.stop))
        rest = await reader.read()
        assert b"[DONE]" in rest
        assert await stopping < 5
        writer.close()
        (event,) = await herd.finished(1, model="m")
        assert event.outcome == "ok"

    run(nats, gateway, scenario)
    assert gateway.process is not None
    assert gateway.process.returncode == 0


def test_a_stop_does_not_wait_for_ever(nats: NatsServer, start: Callable[..., GatewayProcess]) -> None:
    gateway = start(drain_timeout_s=0.5)

    async def scenario(herd: Herd) -> None:
        await herd.add_ready_model("m", tokens=10_000, delay_token_s=0.05)
        reader, writer = await send(gateway, chat(stream=True))
        _, idle = await asyncio.open_connection("127.0.0.1", gateway.port)
        await reader.readuntil(b"tok1")
        stopping = asyncio.create_task(asyncio.to_thread(gateway.stop))
        rest = await reader.read()
        assert b'data: {"error":{"message":"the gateway is being stopped"' in rest
        assert b"[DONE]" not in rest
        assert await stopping < 6
        writer.close()
        idle.close()
        (event,) = await herd.finished(1, model="m")
        assert (event.outcome, event.status) == ("error", 200)

    run(nats, gateway, scenario)


def test_without_the_bus_it_serves_what_it_knows_and_records_it_later(
    nats: NatsServer, start: Callable[..., GatewayProcess]
) -> None:
    gateway = start(ask_timeout_s=1)

    async def scenario(herd: Herd) -> None:
        await herd.add_model("other")
        await herd.add_ready_model("m")
        async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as client:
            assert (await client.post("/v1/chat/completions", json=chat())).status_code == 200
            nats.kill()
            await until(lambda: httpx_status(gateway, "/readyz") == 503)
            assert (await client.get("/healthz")).status_code == 200
            for _ in range(3):
                assert (await client.post("/v1/chat/completions", json=chat())).status_code == 200
            began = time.monotonic()
            lost = await client.post("/v1/chat/completions", json=chat(model="other"))
            assert lost.status_code == 503
            assert time.monotonic() - began < 10
            nats.start()
            await until(lambda: httpx_status(gateway, "/readyz") == 200)
        await herd.finished(4, model="m", within_s=20)

    run(nats, gateway, scenario)


@pytest.mark.parametrize("bus", ["keeps up", "is away for a while"])
def test_a_flood_is_recorded_whole_and_once(nats: NatsServer, start: Callable[..., GatewayProcess], bus: str) -> None:
    gateway = start()

    async def scenario(herd: Herd) -> None:
        await herd.add_ready_model("m", slots=8)
        ids = await flood(gateway, "m", count=1000)
        if bus != "keeps up":
            nats.kill()
        ids += await flood(gateway, "m", count=5000)
        if bus != "keeps up":
            nats.start()

        found = await herd.finished(6000, model="m", within_s=30)

        assert sorted(event.request_id for event in found) == sorted(ids)
        head = await herd.bus.stream_head(REQUESTS)
        assert head.last < 3000, "requests that end together leave together"

    run(nats, gateway, scenario)
    gateway.stop()
    assert "could not take note" not in gateway.log.read_text()


def test_a_stop_hands_over_what_was_kept(nats: NatsServer, start: Callable[..., GatewayProcess]) -> None:
    gateway = start()

    async def scenario(herd: Herd) -> None:
        await herd.add_ready_model("m", slots=8)
        ids = await flood(gateway, "m", count=8)
        assert nats.process is not None
        assert gateway.process is not None
        nats.process.send_signal(signal.SIGSTOP)
        try:
            ids += await flood(gateway, "m", count=5000)
            gateway.process.send_signal(signal.SIGTERM)
        finally:
            nats.process.send_signal(signal.SIGCONT)
        await asyncio.to_thread(gateway.process.wait, 15)

        found = await herd.finished(5008, model="m", within_s=20)

        assert sorted(event.request_id for event in found) == sorted(ids)

    run(nats, gateway, scenario)


def httpx_status(gateway: GatewayProcess, path: str) -> int:
    return httpx.get(gateway.url + path, timeout=5).status_code


def test_it_is_whole_again_after_kill_9_and_without_its_projection(
    nats: NatsServer, start: Callable[..., GatewayProcess]
) -> None:
    gateway = start()

    async def scenario(herd: Herd) -> None:
        await herd.add_ready_model("m")
        models = await asyncio.to_thread(httpx.get, f"{gateway.url}/v1/models")
        for forget in (False, True):
            gateway.kill()
            if forget:
                for file in gateway.folder.glob("projections/gateway.*"):
                    file.unlink()
            await asyncio.to_thread(gateway.start)
            async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as client:
                assert (await client.get("/v1/models")).json() == models.json()
                assert (await client.post("/v1/chat/completions", json=chat())).status_code == 200
        assert herd.loads == []

    run(nats, gateway, scenario)


def test_an_instance_that_hangs_is_left_when_it_is_said_to_be_gone(
    nats: NatsServer, start: Callable[..., GatewayProcess]
) -> None:
    gateway = start()

    async def scenario(herd: Herd) -> None:
        async def leave_it_to_the_restart(_: str) -> None:
            return None

        await herd.add_ready_model("m")
        herd.on_load = leave_it_to_the_restart
        async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as client:
            assert (await client.post("/v1/chat/completions", json=chat())).status_code == 200
            hung = herd.processes["m"]
            hung.send_signal(signal.SIGSTOP)
            asking = asyncio.create_task(client.post("/v1/chat/completions", json=chat()))
            await asyncio.sleep(0.3)
            assert not asking.done()
            await herd.say_exited("m", cause="unhealthy", restart_at_ns=1)
            await herd.start("m")
            assert (await asking).status_code == 200
            hung.kill()
            await hung.wait()

    run(nats, gateway, scenario)


def test_silence_is_ended_by_deadlines(nats: NatsServer, start: Callable[..., GatewayProcess]) -> None:
    gateway = start(receive_timeout_s=1, answer_timeout_s=1, stalled_client_s=1, keep_alive_s=1)

    async def scenario(herd: Herd) -> None:
        await herd.add_ready_model("m", text=" ".join(["x" * 100_000] * 160), delay_first_token_s=0)

        async def half_a_head() -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            writer.write(b"POST /v1/chat")
            assert await reader.read() == b""
            writer.close()

        async def half_a_body() -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{")
            assert (await reader.read()).startswith(b"HTTP/1.1 408")
            writer.close()

        async def idle() -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 200")
            writer.close()

        async def stalled() -> None:
            _, writer = await send(gateway, chat(stream=True))
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            (event,) = await herd.finished(1, model="m")
            assert event.outcome == "cancelled"
            writer.close()

        await asyncio.wait_for(asyncio.gather(half_a_head(), half_a_body(), idle(), stalled()), 15)
        herd.switch("m", delay_first_token_s=30)
        reader, writer = await send(gateway, chat())
        assert (await reader.readline()).startswith(b"HTTP/1.1 504")
        writer.close()

    run(nats, gateway, scenario)


def test_a_port_in_use_is_one_sentence(nats: NatsServer, tmp_path: Path) -> None:
    gateway = GatewayProcess(tmp_path / "gateway", nats.url)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", gateway.port))
        taken.listen()
        gateway.start(wait_ready=False)
        assert gateway.process is not None
        wait_until(lambda: gateway.process is not None and gateway.process.poll() is not None, within_s=20)

    assert gateway.process.returncode == 1
    log = gateway.log.read_text()
    assert f"cannot listen on 127.0.0.1:{gateway.port}: the port is in use" in log
    assert "Traceback" not in log


def test_each_port_answers_strangers_in_its_own_dialect(nats: NatsServer, start: Callable[..., GatewayProcess]) -> None:
    ollama, lmstudio = free_port(), free_port()
    gateway = start(ollama_port=ollama, lmstudio_port=lmstudio)

    def errors(port: int) -> Any:
        answer = httpx.get(f"http://127.0.0.1:{port}/nowhere")
        assert answer.status_code == 404
        return answer.json()["error"]

    assert isinstance(errors(ollama), str)
    assert errors(gateway.port)["code"] == "unknown_url"
    assert "type" in errors(lmstudio)
    assert httpx.get(f"http://127.0.0.1:{ollama}/").text == "Ollama is running"
    for port in (gateway.port, ollama, lmstudio):
        assert httpx.get(f"http://127.0.0.1:{port}/api/tags").json() == {"models": []}
        assert httpx.get(f"http://127.0.0.1:{port}/v1/models").json()["data"] == []


def test_ollamas_port_may_be_taken_by_ollama_itself(nats: NatsServer, start: Callable[..., GatewayProcess]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        gateway = start(ollama_port=port)

        assert httpx.get(f"{gateway.url}/api/version").status_code == 200
    assert f"127.0.0.1:{port} is in use: going on without it (`gateway.ollama_port`" in gateway.log.read_text()


def test_an_unknown_setting_is_one_sentence(tmp_path: Path) -> None:
    config = tmp_path / "llamaherd.yaml"
    config.write_text("gateway:\n  prot: 8080\n")
    command = [sys.executable, "-m", "llamaherd_gateway", "--config", str(config)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 2
    assert f"{config}:2:3: unknown setting `gateway.prot`" in ended.stderr


class Collector(http.server.BaseHTTPRequestHandler):
    """An OTLP endpoint that keeps what it is sent."""

    received: ClassVar[list[tuple[str, bytes]]] = []

    def do_POST(self) -> None:
        self.received.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[str]:
    Collector.received.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_requests_are_exported_as_spans_of_the_clients_trace(
    nats: NatsServer, start: Callable[..., GatewayProcess], collector: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMAHERD_OTLP_ENDPOINT", collector)
    gateway = start()
    trace_id = "0af7651916cd43dd8448eb211c80319c"

    async def scenario(herd: Herd) -> None:
        await herd.add_ready_model("m")
        async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as client:
            headers = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}
            await client.post("/v1/chat/completions", json=chat(), headers=headers)
        (event,) = await herd.finished(1, model="m")
        assert event.trace_id == trace_id

    run(nats, gateway, scenario)
    gateway.stop()

    path, body = Collector.received[0]
    assert path == "/v1/traces"
    exported = ExportTraceServiceRequest.FromString(body)
    (span,) = exported.resource_spans[0].scope_spans[0].spans
    assert span.trace_id.hex() == trace_id
    assert span.name == "chat m"
    attributes = {pair.key: pair.value for pair in span.attributes}
    assert attributes["gen_ai.request.model"].string_value == "m"
    assert attributes["http.response.status_code"].int_value == 200
    assert 0 < span.end_time_unix_nano - span.start_time_unix_nano < 30_000_000_000


def test_the_trace_of_a_request_reaches_the_supervisor_it_asks(
    nats: NatsServer, start: Callable[..., GatewayProcess]
) -> None:
    gateway = start()
    trace_id = "1af7651916cd43dd8448eb211c80319c"
    heard: list[str | None] = []

    async def scenario(herd: Herd) -> None:
        await herd.add_model("m")
        subject = herd.bus.subjects.command("supervisor", "load", node=NODE)
        watch = await herd.bus.watch(subject, lambda seen: heard.append((seen.headers or {}).get("traceparent")))
        async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as client:
            headers = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}
            answer = await client.post("/v1/chat/completions", json=chat(), headers=headers)
        assert answer.status_code == 200
        await watch.close()

    run(nats, gateway, scenario)

    assert trace_id_of(heard[0]) == trace_id

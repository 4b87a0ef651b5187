#!/usr/bin/env python3
"""What the hop costs: llama-server alone, behind nginx, behind llama.cpp's own router, behind the gateway.

One run, one table, and what must hold of it. The model has random weights and half a megabyte, so that llama-server
has little to do and the hop shows: `short` is `POST /tokenize` (0.04 ms of work upstream); `stream` is a 32-token chat
stream; `chat` is a plain answer of one token. `first event` is measured with one connection, hop after hop, on streams
of four tokens, by a client that keeps its connection where the server does.
The gateway is the real process with its nats-server: it asks for an API key, routes, queues and records one event per
request. nginx, wrk and LiteLLM's proxy are used where they are installed; without wrk a slower client of our own
sends the short requests, the ratios hold.
"""

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import uvloop

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from harness.gateway import NODE, SECRET, GatewayProcess, free_port
from harness.herd import llama_server_or_none
from harness.nats import NatsServer
from harness.random_gguf import write_random_gguf
from llamaherd_shared.api_key import hash_secret, render_key
from llamaherd_shared.bus import Bus
from llamaherd_shared.events import decode_event
from llamaherd_shared.events.access import KeyCreated
from llamaherd_shared.events.instance import InstanceReady, InstanceStarted
from llamaherd_shared.events.model import ModelFound
from llamaherd_shared.events.node import NodeJoined
from llamaherd_shared.events.request import requests_of
from llamaherd_shared.service import new_id
from llamaherd_shared.streams import REQUESTS
from llamaherd_shared.upstream_key import upstream_key

SLOTS = 16
CONTEXT_TOKENS = 256
TOKENS = 32
STREAM_CONNECTIONS = 8
FIRST_TURNS = 10
PAUSE_S = 0.005
LITELLM_KEY = f"sk-{secrets.token_hex(16)}"
"""Its proxy refuses to start without one; only this run's loopback sees it."""
DIRECT, ROUTER, GATEWAY = "llama-server direct", "llama.cpp router", "llamaherd gateway"

WRK_SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer %s"
wrk.body = [[%s]]
function done(summary, latency)
  local e = summary.errors
  io.write(string.format("RESULT %%d %%d %%.3f %%.3f %%d\\n", summary.requests, summary.duration,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000, e.connect + e.read + e.write + e.status + e.timeout))
end
"""


class Hop:
    """One way to reach the model."""

    def __init__(self, name: str, port: int, key: str, *, short: bool = True) -> None:
        self.name, self.port, self.key = name, port, key
        self.short = short
        """Whether it passes `/tokenize` on."""


class Short:
    def __init__(self, rate: float, p50_ms: float, p99_ms: float, sent: int, failed: int) -> None:
        self.rate, self.p50_ms, self.p99_ms, self.sent, self.failed = rate, p50_ms, p99_ms, sent, failed


class Streams:
    def __init__(self) -> None:
        self.sent = self.failed = 0
        self.first_ms: list[float] = []
        self.why: defaultdict[str, int] = defaultdict(int)


# --- the parties -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def running(command: list[str], log: Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, **options)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(answers: Callable[[], bool], what: str, *, within_s: float = 60) -> None:
    deadline = time.monotonic() + within_s
    while True:
        with contextlib.suppress(httpx.HTTPError):
            if answers():
                return
        if time.monotonic() > deadline:
            raise SystemExit(f"{what} did not start within {within_s:g} s")
        time.sleep(0.05)


def nginx_configuration(folder: Path, port: int, upstream: int) -> Path:
    path = folder / "nginx.conf"
    path.write_text(
        f"""daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.log error;
        events {{ worker_connections 1024; }}
        http {{
          access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
          fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
          keepalive_requests 10000000;
          upstream llama {{ server 127.0.0.1:{upstream}; keepalive 64; }}
          server {{
            listen 127.0.0.1:{port};
            location / {{
              proxy_pass http://llama; proxy_http_version 1.1; proxy_set_header Connection "";
              proxy_buffering off; proxy_request_buffering off;
            }}
          }}
        }}"""
    )
    return path


def litellm_configuration(folder: Path, model: str, port: int, key: str) -> Path:
    path = folder / "litellm.yaml"
    parameters = {"model": f"openai/{model}", "api_base": f"http://127.0.0.1:{port}/v1", "api_key": key}
    models = [{"model_name": model, "litellm_params": parameters}]
    path.write_text(json.dumps({"model_list": models, "general_settings": {"master_key": LITELLM_KEY}}))
    return path


async def tell_the_herd(nats_url: str, model: str, port: int) -> str:
    """What supervisor and ui would have said about the llama-server that all hops share; returns an API key."""
    bus = await Bus.connect(nats_url, service="bench", timeout_s=10)
    await bus.ensure_streams()
    now = time.time_ns()
    subjects = bus.subjects
    joined = NodeJoined(node=NODE, at_ns=now, version="0", cpus=1, memory_bytes=1, models_dir="", llama_server="")
    found = ModelFound(node=NODE, model=model, at_ns=now, path="", size_bytes=1, modified_ns=now)
    started = InstanceStarted(
        node=NODE,
        model=model,
        at_ns=now,
        pid=1,
        process_started_s=1.0,
        host="127.0.0.1",
        port=port,
        generation=1,
    )
    ready = InstanceReady(node=NODE, model=model, at_ns=now, load_s=1, slots=SLOTS, context_tokens=CONTEXT_TOKENS)
    await bus.append(subjects.node(NODE), joined, msg_id=new_id())
    await bus.append(subjects.model(NODE, model), found, msg_id=new_id())
    await bus.append(subjects.instance(NODE, model, 0), started, msg_id=new_id())
    await bus.append(subjects.instance(NODE, model, 0), ready, msg_id=new_id())
    id_, secret = "benchkey", "s" * 43
    created = KeyCreated(key=id_, at_ns=now, name="bench", prefix=f"llh_{id_}", secret_sha256=hash_secret(secret))
    await bus.append(subjects.access(id_), created, msg_id=new_id())
    await bus.close()
    return render_key(id_, secret)


async def count_events(nats_url: str, at_least: int) -> int:
    """Requests on record: all of them, or as many as there are when no more come for 5 s or a minute is over."""
    bus = await Bus.connect(nats_url, service="bench", timeout_s=10)
    loop, count = asyncio.get_running_loop(), 0
    deadline = loop.time() + 60
    with contextlib.suppress(TimeoutError):
        async with (
            asyncio.timeout(5) as silence,
            contextlib.aclosing(bus.read(REQUESTS, after=0)) as batches,
        ):
            async for batch in batches:
                count += sum(len(requests_of(decode_event(recorded.data))) for recorded in batch)
                if count >= at_least:
                    break
                silence.reschedule(min(loop.time() + 5, deadline))
    await bus.close()
    return count


# --- the load --------------------------------------------------------------------------------------------------------


def measure_short(hop: Hop, connections: int, seconds: float, body: str, folder: Path) -> Short:
    if shutil.which("wrk") is None:
        return uvloop.run(_without_wrk(hop, "/tokenize", connections, seconds, body.encode()))
    script = folder / "short.lua"
    script.write_text(WRK_SCRIPT % (hop.key, body))
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "10s", "-s", str(script)]
    output = subprocess.run(
        [*command, f"http://127.0.0.1:{hop.port}/tokenize"], capture_output=True, text=True, check=True
    ).stdout
    requests, micros, p50, p99, failed = output.rsplit("RESULT ", 1)[1].split()
    return Short(int(requests) / int(micros) * 1e6, float(p50), float(p99), int(requests), int(failed))


async def _without_wrk(hop: Hop, path: str, connections: int, seconds: float, body: bytes) -> Short:
    took_ms: list[float] = []
    failed = 0
    deadline = time.monotonic() + seconds
    request = render_request(path, hop.key, body)

    async def work() -> None:
        nonlocal failed
        reader, writer = await asyncio.open_connection("127.0.0.1", hop.port)
        while time.monotonic() < deadline:
            began = time.perf_counter()
            writer.write(request)
            try:
                head = await reader.readuntil(b"\r\n\r\n")
                if b"transfer-encoding: chunked" in head.lower():
                    await reader.readuntil(b"0\r\n\r\n")
                else:
                    await reader.readexactly(int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]))
            except (OSError, EOFError, IndexError):  # no answer, or one without a length
                reader, writer = await asyncio.open_connection("127.0.0.1", hop.port)
                failed += 1
                continue
            failed += not head.startswith(b"HTTP/1.1 200")
            took_ms.append((time.perf_counter() - began) * 1e3)
            if b"connection: close" in head.lower():
                writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", hop.port)
        writer.close()

    await asyncio.gather(*(work() for _ in range(connections)))
    if len(took_ms) < 2:
        raise SystemExit(f"{hop.name} answered {len(took_ms)} of {failed + len(took_ms)} requests for {path}")
    cuts = statistics.quantiles(took_ms, n=100)
    return Short(len(took_ms) / seconds, cuts[49], cuts[98], len(took_ms), failed)


def render_request(path: str, key: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\n"
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def measure_streams(
    hop: Hop,
    seconds: float,
    body: bytes,
    result: Streams,
    connections: int = STREAM_CONNECTIONS,
    *,
    keeps: bool = False,
) -> None:
    """Streams until time is up. Failed: not 200, cut short, or without `[DONE]`.

    Each on a connection of its own: whether a client may reuse it is not the question here. With `keeps` a client does
    as SDKs do: it pauses for a moment, and dials anew, within the time that counts, where the server has closed.
    """
    request = render_request("/v1/chat/completions", hop.key, body)
    deadline = time.monotonic() + seconds

    async def work() -> None:
        link: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while time.monotonic() < deadline:
            began = time.perf_counter()
            if link is None or link[0].at_eof():
                link = await asyncio.open_connection("127.0.0.1", hop.port)
                if not keeps:
                    began = time.perf_counter()
            reader, writer = link
            writer.write(request)
            result.sent += 1
            try:
                why = await asyncio.wait_for(read_stream(reader, began, result), 30)
            except (OSError, EOFError, asyncio.LimitOverrunError, TimeoutError) as error:
                why = type(error).__name__
            if why:
                result.failed += 1
                result.why[why] += 1
            if why or not keeps:
                writer.close()
                link = None
            else:
                await asyncio.sleep(PAUSE_S)
        if link is not None:
            link[1].close()

    await asyncio.gather(*(work() for _ in range(connections)))


async def read_stream(reader: asyncio.StreamReader, began: float, result: Streams) -> str:
    """Read one answer to its end; returns what is wrong with it, or nothing."""
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        return head[9:12].decode()
    first = await reader.readuntil(b"\n\n")
    result.first_ms.append((time.perf_counter() - began) * 1e3)
    rest = first + await reader.readuntil(b"\r\n0\r\n\r\n")
    return "" if b"data: [DONE]" in rest else "no [DONE]"


# --- the run ---------------------------------------------------------------------------------------------------------


def find_llama_server(given: str | None) -> str:
    found = given or llama_server_or_none()
    if not found:
        raise SystemExit("no llama-server: set LLAMAHERD_LLAMA_SERVER, or `llamaherd install llama-server`")
    return str(found)


def run(arguments: argparse.Namespace) -> None:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llamaherd-bench-")))
        models = folder / "models"
        models.mkdir()
        if arguments.model:
            path = models / arguments.model.name
            path.symlink_to(arguments.model.resolve())
        else:
            path = write_random_gguf(models / "random.gguf")
        model = path.stem
        llama_server = find_llama_server(arguments.llama_server)
        key = upstream_key(SECRET, node=NODE, model=model, index=0, generation=1)
        sizes = ["-np", str(SLOTS), "-c", str(SLOTS * CONTEXT_TOKENS), "-t", "1", "--no-webui"]

        direct = Hop(DIRECT, free_port(), key)
        command = [llama_server, "-m", str(path), "--port", str(direct.port), "--api-key", key, "--alias", model]
        stack.enter_context(running([*command, *sizes], folder / "llama-server.log"))
        hops = [direct]

        if nginx := shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin"):
            hop = Hop("nginx", free_port(), key)
            configuration = nginx_configuration(folder, hop.port, direct.port)
            stack.enter_context(running([nginx, "-c", str(configuration)], folder / "nginx.out"))
            hops.append(hop)

        router = Hop(ROUTER, free_port(), key)
        command = [llama_server, "--models-dir", str(models), "--port", str(router.port), "--api-key", key]
        stack.enter_context(running([*command, *sizes], folder / "router.log"))
        hops.append(router)

        nats = NatsServer(folder / "nats").start()
        stack.callback(nats.stop)
        own_key = asyncio.run(tell_the_herd(nats.url, model, direct.port))
        gateway = GatewayProcess(folder / "gateway", nats.url, keys="required").start()
        stack.callback(gateway.stop)
        hops.append(Hop(GATEWAY, gateway.port, own_key))
        if litellm := arguments.litellm or shutil.which("litellm"):
            hop = Hop("LiteLLM proxy", free_port(), LITELLM_KEY, short=False)
            command = [str(litellm), "--config", str(litellm_configuration(folder, model, direct.port, key))]
            environment = {**os.environ, "LITELLM_TELEMETRY": "False"}
            stack.enter_context(
                running(
                    [*command, "--host", "127.0.0.1", "--port", str(hop.port)], folder / "litellm.log", env=environment
                )
            )
            hops.append(hop)

        short_body = json.dumps({"model": model, "content": "hello"})
        message = {"role": "user", "content": "hello"}
        stream_body = json.dumps(
            {
                "model": model,
                "messages": [message],
                "max_tokens": TOKENS,
                "stream": True,
                "temperature": 0,
                "ignore_eos": True,
            }
        ).encode()
        chat_body = json.dumps({"model": model, "messages": [message], "max_tokens": 1, "temperature": 0}).encode()
        first_body = json.dumps(json.loads(stream_body) | {"max_tokens": 4}).encode()
        for hop in hops:
            url = f"http://127.0.0.1:{hop.port}/v1/chat/completions"
            headers = {"Authorization": f"Bearer {hop.key}", "Content-Type": "application/json"}
            wait_for(
                lambda url=url, headers=headers: (
                    httpx.post(url, content=chat_body, headers=headers, timeout=30).status_code == 200
                ),
                hop.name,
            )

        chats: defaultdict[str, list[Short]] = defaultdict(list)
        firsts: dict[str, Streams] = {hop.name: Streams() for hop in hops}
        shorts: defaultdict[tuple[str, int], list[Short]] = defaultdict(list)
        streams: dict[str, Streams] = {hop.name: Streams() for hop in hops}
        for number in range(arguments.rounds):
            # The order turns, so that no hop is always the first or the last.
            for hop in hops[number % len(hops) :] + hops[: number % len(hops)]:
                print(f"round {number + 1}/{arguments.rounds}: {hop.name}", file=sys.stderr, flush=True)
                for connections in (1, 16) if hop.short else ():
                    seen = measure_short(hop, connections, arguments.seconds, short_body, folder)
                    shorts[hop.name, connections].append(seen)
                chats[hop.name].append(
                    uvloop.run(_without_wrk(hop, "/v1/chat/completions", 1, arguments.seconds / 2, chat_body))
                )
                uvloop.run(measure_streams(hop, arguments.seconds, stream_body, streams[hop.name]))
            # In small turns, so that what else the machine does falls on all of them alike.
            for _ in range(FIRST_TURNS):
                for hop in hops:
                    uvloop.run(
                        measure_streams(hop, arguments.seconds / 10, first_body, firsts[hop.name], 1, keeps=True)
                    )

        sent = sum(seen.sent for (name, _), runs in shorts.items() if name == GATEWAY for seen in runs)
        sent += streams[GATEWAY].sent + firsts[GATEWAY].sent + sum(seen.sent for seen in chats[GATEWAY])
        sent += 1  # the one that asked whether it is there
        stored = asyncio.run(count_events(nats.url, sent))
        report(hops, shorts, streams, chats, firsts)
        print(f"\ngateway: {sent} requests counted by the clients, {stored} events on record")
        log = gateway.log.read_text()
        print("\n".join(line for line in log.splitlines() if "WARN" in line or "ERROR" in line))


def report(
    hops: list[Hop],
    shorts: dict[tuple[str, int], list[Short]],
    streams: dict[str, Streams],
    chats: dict[str, list[Short]],
    firsts: dict[str, Streams],
) -> None:
    def median(name: str, connections: int, field: str) -> float:
        return statistics.median(getattr(seen, field) for seen in shorts[name, connections])

    print(
        "| hop | short, 1 conn: p50 / p99 ms | req/s | short, 16 conns: p50 / p99 ms | req/s | failed / sent |"
        " chat, 1 conn: p50 ms | first event, 1 conn: p50 ms | stream, 8 conns: failed / sent |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for hop in hops:
        one, many = (hop.name, 1), (hop.name, 16)
        cells = ["-"] * 5
        if hop.short:
            failed = sum(seen.failed for seen in (*shorts[one], *shorts[many]))
            sent = sum(seen.sent for seen in (*shorts[one], *shorts[many]))
            cells = [
                f"{median(*one, 'p50_ms'):.3f} / {median(*one, 'p99_ms'):.2f}",
                f"{median(*one, 'rate'):,.0f}",
                f"{median(*many, 'p50_ms'):.2f} / {median(*many, 'p99_ms'):.1f}",
                f"{median(*many, 'rate'):,.0f}",
                f"{failed} / {sent}",
            ]
        cells.append(f"{statistics.median(seen.p50_ms for seen in chats[hop.name]):.2f}")
        cells.append(f"{statistics.median(firsts[hop.name].first_ms):.2f}")
        seen = streams[hop.name]
        cells.append(f"{seen.failed} / {seen.sent}" + "".join(f" ({count} {name})" for name, count in seen.why.items()))
        print(f"| {hop.name} | {' | '.join(cells)} |")
    print("\n| the gateway must hold | here | bar | |\n|---|---|---|---|")
    for what, here, sign, bar in [
        *compare({hop.name for hop in hops}, median),
        ("first event behind llama-server's own, p50 ms", first_added_ms(firsts), "<=", 0.3),
    ]:
        holds = here <= bar if sign == "<=" else here >= bar
        print(f"| {what} | {here:.2f} | {sign} {bar:g} | {'ok' if holds else 'missed'} |")


def compare(names: set[str], median: Callable[[str, int, str], float]) -> Iterator[tuple[str, float, str, float]]:
    """What must hold against the peers that ran: its words, the ratio, the sign, the bar.

    The bars leave room to what a prototype of the relay reached on two cores, beside nginx and the router.
    """

    def ratio(peer: str, connections: int, field: str) -> float:
        return median(GATEWAY, connections, field) / median(peer, connections, field)

    if "nginx" in names:
        yield "short, 1 connection: p50 / nginx's", ratio("nginx", 1, "p50_ms"), "<=", 1.5
        yield "short, 16 connections: requests/s / nginx's", ratio("nginx", 16, "rate"), ">=", 0.5
        yield "short, 1 connection: p99 / nginx's", ratio("nginx", 1, "p99_ms"), "<=", 3
        yield "short, 16 connections: p99 / nginx's", ratio("nginx", 16, "p99_ms"), "<=", 3
    yield "short, 1 connection: the router's p50 / the gateway's", 1 / ratio(ROUTER, 1, "p50_ms"), ">=", 3
    yield "short, 16 connections: requests/s / the router's", ratio(ROUTER, 16, "rate"), ">=", 4


def first_added_ms(firsts: dict[str, Streams]) -> float:
    return statistics.median(firsts[GATEWAY].first_ms) - statistics.median(firsts[DIRECT].first_ms)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="GGUF; default: one with random weights, made for the run")
    parser.add_argument("--llama-server", help="default: the one the launcher would take")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4, help="of each measurement")
    parser.add_argument("--litellm", type=Path, help="its program; default: the one on the PATH, if any")
    run(parser.parse_args())


if __name__ == "__main__":
    main()

"""Streams in numbers: memory of a thousand open ones, and a hundred thousand of which none may fail.

`uv run python bench/streams.py`. The open ones come from a fake llama-server, which has a thousand slots and says a
word every few seconds; the many come from the real one with cria, four tokens each, at 32 connections, through a
gateway that asks for an API key and records every request.
"""

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import uvloop

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from relay import (
    Hop,
    Streams,
    count_events,
    find_llama_server,
    read_stream,
    render_request,
    running,
    tell_the_herd,
    wait_for,
)

from harness.gateway import NODE, SECRET, GatewayProcess, free_port, open_herd
from harness.nats import NatsServer
from llamaherd_shared.upstream_key import upstream_key

DEMO = Path(__file__).resolve().parents[1] / "llamaherd" / "llamaherd" / "demo" / "cria.gguf"
SLOTS = 32
CONTEXT_TOKENS = 256


def body(model: str, tokens: int) -> bytes:
    messages = [{"role": "user", "content": "hello"}]
    fields = {"model": model, "messages": messages, "max_tokens": tokens, "stream": True, "temperature": 0}
    return json.dumps(fields | {"ignore_eos": True}).encode()


async def hold_open(nats_url: str, gateway: GatewayProcess, count: int) -> None:
    """Memory per stream while `count` of them are open."""
    async with open_herd(nats_url, gateway) as herd:
        await herd.add_ready_model("slow", slots=count, tokens=1000, delay_token_s=4.0)
        request = render_request("/v1/chat/completions", "any", body("slow", 1000))
        connections = []

        async def open_one() -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            connections.append(writer)
            writer.write(request)
            await reader.readuntil(b"data: ")

        await open_one()
        before = gateway.rss_bytes()
        for _ in range(0, count - 1, 50):
            await asyncio.gather(*(open_one() for _ in range(min(50, count - len(connections)))))
        grown = gateway.rss_bytes() - before
        print(
            f"{len(connections)} open streams: {grown / (count - 1) / 1024:.1f} KB each ({grown / 2**20:.1f} MB in all)"
        )
        for writer in connections:
            writer.close()


async def send_many(hop: Hop, request_body: bytes, count: int, connections: int, result: Streams) -> float:
    """So many streams, one after the other on each connection; returns the seconds that took."""
    request = render_request("/v1/chat/completions", hop.key, request_body)
    left = count
    began = time.perf_counter()

    async def work() -> None:
        nonlocal left
        reader, writer = await asyncio.open_connection("127.0.0.1", hop.port)
        while left > 0:
            left -= 1
            result.sent += 1
            sent_at = time.perf_counter()
            writer.write(request)
            try:
                why = await asyncio.wait_for(read_stream(reader, sent_at, result), 60)
            except (OSError, EOFError, asyncio.LimitOverrunError, TimeoutError) as error:
                why = type(error).__name__
            if why:
                result.failed += 1
                result.why[why] += 1
                writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", hop.port)
        writer.close()

    await asyncio.gather(*(work() for _ in range(connections)))
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--open", type=int, default=1000, help="streams held open at once; 0: skip that part")
    parser.add_argument("--streams", type=int, default=100_000, help="streams sent in all")
    parser.add_argument("--connections", type=int, default=32)
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llamaherd-streams-")))
        nats = NatsServer(folder / "nats").start()
        stack.callback(nats.stop)
        if options.open:
            gateway = GatewayProcess(folder / "open", nats.url, queue_limit=10).start()
            uvloop.run(hold_open(nats.url, gateway, options.open))
            gateway.stop()
        if not options.streams:
            return
        other = NatsServer(folder / "nats2").start()
        stack.callback(other.stop)
        model, port = DEMO.stem, free_port()
        key = upstream_key(SECRET, node=NODE, model=model, index=0, generation=1)
        command = [find_llama_server(None), "-m", str(DEMO), "--port", str(port), "--api-key", key, "--alias", model]
        command += ["-np", str(SLOTS), "-c", str(SLOTS * CONTEXT_TOKENS), "-t", "1", "--no-webui"]
        stack.enter_context(running(command, folder / "llama-server.log"))
        own_key = asyncio.run(tell_the_herd(other.url, model, port))
        gateway = GatewayProcess(folder / "gateway", other.url, keys="required").start()
        stack.callback(gateway.stop)
        hop, warm, result = Hop("gateway", gateway.port, own_key), Streams(), Streams()
        one = body(model, 4)
        wait_for(lambda: not uvloop.run(send_many(hop, one, 1, 1, warm)) or warm.sent > warm.failed, "llama-server")
        took_s = uvloop.run(send_many(hop, one, options.streams, options.connections, result))
        stored = asyncio.run(count_events(other.url, result.sent + warm.sent))
        first_ms = statistics.quantiles(result.first_ms, n=100)
        why = "".join(f" ({count} {name})" for name, count in result.why.items())
        print(
            f"{result.sent:,} streams at {options.connections} connections: {result.failed} failed{why}; "
            f"{result.sent / took_s:,.0f} a second, first event p50 {first_ms[49]:.1f} ms, p99 {first_ms[98]:.1f} ms; "
            f"{stored - warm.sent:,} on record"
        )


if __name__ == "__main__":
    main()

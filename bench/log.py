"""What the log costs and what it survives: `uv run python bench/log.py`.

1. events/s applied by the projection library, and the time to rebuild a million events;
2. kill -9 of the reader (20 times) and of nats-server (10 times) under load: nothing acknowledged lost,
   nothing applied twice.

Rates depend on the machine and its disk: the same run therefore also measures plain SQLite inserts of the same
rows, without bus and checkpoint, and prints the ratio.
"""

import argparse
import asyncio
import os
import random
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from harness.nats import NatsServer
from llamaherd_shared.bus import Bus, Recorded
from llamaherd_shared.events import decode_event, encode_event
from llamaherd_shared.events.request import RequestFinished
from llamaherd_shared.projection import Follower, Projection, Source
from llamaherd_shared.streams import REQUESTS

SCHEMA = """
create table if not exists request(
  sequence integer primary key, request_id text not null, at_ns integer not null, model text not null,
  status integer not null, outcome text not null, completion_tokens integer, total_ms real not null);
create table if not exists model(model text primary key, requests integer not null) without rowid;
"""
INSERT = "insert into request values(?,?,?,?,?,?,?,?)"


def make(number: int) -> RequestFinished:
    return RequestFinished(
        request_id=f"{number:016x}",
        at_ns=1_790_000_000_000_000_000 + number,
        node="bench",
        model=f"model-{number % 7}",
        instance="bench/model/0",
        route="/v1/chat/completions",
        status=200,
        outcome="ok",
        prompt_tokens=number % 999,
        completion_tokens=number % 333,
        total_ms=12.5,
    )


def row(recorded: Recorded, event: RequestFinished) -> tuple[Any, ...]:
    return (
        recorded.sequence,
        event.request_id,
        event.at_ns,
        event.model,
        event.status,
        event.outcome,
        event.completion_tokens,
        event.total_ms,
    )


def project(db: sqlite3.Connection, applied: Sequence[tuple[Recorded, Any]]) -> None:
    counts: dict[str, int] = {}
    for _, event in applied:
        counts[event.model] = counts.get(event.model, 0) + 1
    db.executemany(INSERT, [row(recorded, event) for recorded, event in applied])
    db.executemany(
        "insert into model values(?,?) on conflict(model) do update set requests=requests+excluded.requests",
        list(counts.items()),
    )


SOURCE = Source(stream=REQUESTS, decode=decode_event, project=project)


async def fill(bus: Bus, count: int, first: int = 0) -> float:
    """Publish `count` events and wait for their acknowledgements; returns seconds."""
    began = time.perf_counter()
    subject = bus.subjects.request("bench", "model", "ok")
    window: set[asyncio.Task[int]] = set()
    for number in range(first, first + count):
        event = make(number)
        if len(window) >= 2_000:
            _, window = await asyncio.wait(window, return_when=asyncio.FIRST_COMPLETED)
        window.add(asyncio.create_task(bus.publish(subject, encode_event(event), msg_id=event.request_id)))
    await asyncio.gather(*window)
    return time.perf_counter() - began


async def rebuild(url: str, path: Path, last: int) -> float:
    """A fresh projection of everything; returns seconds from opening the file to the last commit."""
    bus = await Bus.connect(url, service="reader", timeout_s=10)
    began = time.perf_counter()
    projection = Projection(path, SCHEMA)
    follower = Follower(bus, projection, SOURCE)
    task = asyncio.create_task(follower.run())
    while follower.sequence < last:  # noqa: ASYNC110  # measured from outside: no event in the library for it
        await asyncio.sleep(0.01)
    took = time.perf_counter() - began
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await bus.close()
    projection.close()
    return took


def plain_inserts(path: Path, count: int) -> float:
    """The floor: decode and insert the same rows from memory, 500 a transaction; returns seconds."""
    payloads = [(n + 1, encode_event(make(n))) for n in range(count)]
    db = sqlite3.connect(path, isolation_level=None)
    db.executescript("pragma journal_mode=wal; pragma synchronous=normal;" + SCHEMA)
    began = time.perf_counter()
    for at in range(0, count, 500):
        db.execute("begin")
        batch = [
            (Recorded(REQUESTS, sequence, 0, "", payload), decode_event(payload))
            for sequence, payload in payloads[at : at + 500]
        ]
        project(db, batch)
        db.execute("commit")
    return time.perf_counter() - began


async def measure_rates(folder: Path, million: int, rounds: int) -> None:
    # Filling goes at the speed of fsync unless the stream is told otherwise; only reading is measured here.
    server = NatsServer(folder / "rates", sync="2m").start()
    bus = await Bus.connect(server.url, service="writer", timeout_s=10)
    await bus.ensure_streams()
    took = await fill(bus, million)
    print(
        f"published     {million:>9,} events in {took:6.2f} s  {million / took:>9,.0f} events/s (window 512, fsync off)"
    )
    part = min(million, 200_000)
    floors, rates = [], []
    for number in range(rounds):
        floors.append(part / plain_inserts(folder / f"plain{number}.sqlite", part))
        rates.append(part / await rebuild(server.url, folder / f"part{number}.sqlite", part))
    floor, rate = statistics.median(floors), statistics.median(rates)
    print(
        f"plain SQLite  {part:>9,} events, median of {rounds}      {floor:>9,.0f} events/s (decode and insert, no bus)"
    )
    print(
        f"applied       {part:>9,} events, median of {rounds}      {rate:>9,.0f} events/s ({rate / floor:.2f} of plain)"
    )
    took = await rebuild(server.url, folder / "million.sqlite", million)
    print(f"rebuilt       {million:>9,} events in {took:6.2f} s  {million / took:>9,.0f} events/s")
    await bus.close()
    server.stop()


async def follow_for_ever(url: str, path: Path) -> None:
    bus = await Bus.connect(url, service="reader")
    await Follower(bus, Projection(path, SCHEMA), SOURCE).run()


async def measure_kills(folder: Path, reader_kills: int, server_kills: int) -> bool:
    server = NatsServer(folder / "kills").start()
    bus = await Bus.connect(server.url, service="writer", timeout_s=10)
    await bus.ensure_streams()
    path = folder / "kills.sqlite"
    acked: set[str] = set()
    subject = bus.subjects.request("bench", "model", "ok")
    stop = False

    async def write(worker: int) -> None:
        number = worker * 1_000_000_000
        while not stop:
            event = make(number)
            await bus.publish(subject, encode_event(event), msg_id=event.request_id)
            acked.add(event.request_id)
            number += 1

    def start_reader() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, __file__, "--follow", server.url, str(path)])

    writers = [asyncio.create_task(write(worker)) for worker in range(64)]
    reader = start_reader()
    deaths = ["reader"] * reader_kills + ["server"] * server_kills
    random.Random(7).shuffle(deaths)
    for death in deaths:
        await asyncio.sleep(random.uniform(0.3, 1.0))
        if death == "reader":
            reader.send_signal(signal.SIGKILL)
            reader.wait()
            reader = start_reader()
        else:
            server.kill()
            server.start()
    await asyncio.sleep(1)
    stop = True
    await asyncio.gather(*writers)
    last = (await bus.stream_head(REQUESTS)).last
    deadline = time.monotonic() + 60
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    while time.monotonic() < deadline:
        (at,) = db.execute("select coalesce(max(sequence), 0) from checkpoint").fetchone()
        if at >= last:
            break
        await asyncio.sleep(0.1)
    reader.send_signal(signal.SIGKILL)
    reader.wait()
    stored = [name for (name,) in db.execute("select request_id from request")]
    (counted,) = db.execute("select sum(requests) from model").fetchone()
    lost, doubled = len(acked - set(stored)), len(stored) - len(set(stored))
    print(
        f"kill -9       reader {reader_kills} times, nats-server {server_kills} times: "
        f"{len(acked):,} acknowledged, {len(stored):,} applied, {lost} lost, {doubled} doubled, "
        f"counter {'exact' if counted == len(stored) else f'off by {counted - len(stored)}'}"
    )
    await bus.close()
    server.stop()
    return lost == 0 and doubled == 0 and counted == len(stored)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--reader-kills", type=int, default=20)
    parser.add_argument("--server-kills", type=int, default=10)
    parser.add_argument("--only", choices=["rates", "kills"])
    parser.add_argument("--follow", nargs=2, metavar=("URL", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.follow:
        uvloop.run(follow_for_ever(options.follow[0], Path(options.follow[1])))
    intact = True
    with tempfile.TemporaryDirectory(prefix="llamaherd-bench-") as folder:
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        if options.only != "kills":
            uvloop.run(measure_rates(Path(folder), options.events, options.rounds))
        if options.only != "rates":
            intact = uvloop.run(measure_kills(Path(folder), options.reader_kills, options.server_kills))
    return 0 if intact else 1


if __name__ == "__main__":
    sys.exit(main())

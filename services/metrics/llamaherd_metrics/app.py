"""Puts the two halves together: a collector, which measures this host, and a recorder, which keeps all samples."""

import asyncio
import sqlite3
import time
from collections.abc import Sequence
from functools import partial
from typing import Final

import msgspec

from llamaherd_metrics import store
from llamaherd_metrics.handlers import Handlers
from llamaherd_metrics.host import Processes, read_host
from llamaherd_metrics.nvml import Gpus
from llamaherd_metrics.rollup import AHEAD_S
from llamaherd_metrics.sample import GpuReading, Readings, next_tick, shape_samples
from llamaherd_metrics.settings import MetricsSettings
from llamaherd_metrics.targets import Target, Targets, evolve, hear
from llamaherd_shared.bus import Recorded
from llamaherd_shared.commands import HistoryQuery
from llamaherd_shared.events import decode_event
from llamaherd_shared.events.presence import Presence
from llamaherd_shared.events.sample import Sample, decode_sample, encode_sample
from llamaherd_shared.fold import Snapshot, replay
from llamaherd_shared.projection import Applied, Follower, Projection, Source
from llamaherd_shared.service import Service
from llamaherd_shared.streams import EVENTS, METRICS

FIRST_SCRAPE_S: Final = 0.2
"""From the first reading, which only counters are taken from, to the first sample."""
_STALE_BEATS: Final = 3
"""So many intervals old, what GPUs told last is not told again."""


async def run(service: Service, settings: MetricsSettings) -> None:
    """Measure, record and answer until the service is asked to stop."""
    # Opened outside the task group: an unusable file then is one sentence, not a group of exceptions.
    halves: list[Collector | Recorder] = []
    if settings.collect:
        halves.append(Collector(service, settings))
    if settings.record:
        halves.append(Recorder(service, settings))
    try:
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(half.run()) for half in halves]
            running.append(group.create_task(_say_ready(service, halves)))
            await service.stopping.wait()
            for task in running:
                task.cancel()
    finally:
        for half in halves:
            half.close()


async def _say_ready(service: Service, halves: "Sequence[Collector | Recorder]") -> None:
    for half in halves:
        await half.ready.wait()
    service.ready()


class Recorder:
    """Follows `HERD_METRICS` into the projection and answers `cmd.metrics.history` from it."""

    def __init__(self, service: Service, settings: MetricsSettings) -> None:
        self._service, self._rungs = service, store.ladder(settings)
        self._projection = service.projection(store.SCHEMA, store.VERSION)
        source = Source(
            stream=METRICS,
            decode=decode_sample,
            project=lambda db, applied: store.record(db, self._rungs, applied),
            committed=_ClockWatch(service).see,
        )
        trouble = partial(service.trouble, about="recorder")
        self._follower = Follower(service.bus, self._projection, source, trouble=trouble)
        self.ready = self._follower.caught_up

    async def run(self) -> None:
        bus, handlers = self._service.bus, Handlers(self._projection, self._rungs)
        served = await bus.serve(bus.subjects.command("metrics", "history"), HistoryQuery, handlers.history)
        try:
            await self._follower.run()
        finally:
            await served.drain()

    def close(self) -> None:
        self._projection.close()


class _ClockWatch:
    """Says once per node that its samples are refused because its clock is wrong."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._told: set[str] = set()

    def see(self, applied: Sequence[tuple[Recorded, Sample]]) -> None:
        for recorded, sample in applied:
            ahead_s = (sample.at_ns - recorded.at_ns) / 1e9
            if ahead_s > AHEAD_S and sample.node not in self._told:
                self._told.add(sample.node)
                self._service.log.warning(
                    f"samples of node {sample.node} are dated {ahead_s:.0f} s ahead and are not kept: set its clock"
                )


class Collector:
    """Measures this host, its GPUs, and the herd's processes on it."""

    def __init__(self, service: Service, settings: MetricsSettings) -> None:
        self._service, self._settings = service, settings
        self._node = service.common.node
        self._services: Targets = {}
        self._processes = Processes()
        self._gpus: list[GpuReading] = []
        self._gpus_read_s = 0.0
        """When, on the machine's monotonic clock."""
        self.ready = asyncio.Event()
        path = service.common.data_dir / "projections" / "metrics-instances.v1.sqlite"
        self._projection = Projection(path, _SCHEMA)
        self._instances = _read_targets(self._projection.db)
        source = Source(
            stream=EVENTS,
            decode=decode_event,
            project=self._project,
            committed=self._evolve,
            reset=self._forget,
        )
        trouble = partial(service.trouble, about="collector")
        self._follower = Follower(service.bus, self._projection, source, trouble=trouble)

    async def run(self) -> None:
        bus = self._service.bus
        watch = await bus.watch(bus.subjects.all("presence"), self._hear)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follower.run())
                group.create_task(self._scrape())
                if self._settings.gpu:
                    group.create_task(self._scrape_gpus())
        finally:
            await watch.close()

    def close(self) -> None:
        self._projection.close()

    async def _scrape(self) -> None:
        previous = await asyncio.to_thread(self._read, {})
        await asyncio.sleep(min(FIRST_SCRAPE_S, self._settings.interval_s))
        start_s = time.monotonic()
        while True:
            at_ns = time.time_ns()
            current = await asyncio.to_thread(self._read, {**self._services, **self._instances})
            for sample in shape_samples(self._node, previous, current, self._current_gpus(), at_ns=at_ns):
                self._offer(sample)
            previous = current
            self.ready.set()
            await _until(next_tick(start_s, self._settings.interval_s, time.monotonic()))

    async def _scrape_gpus(self) -> None:
        """On a beat of its own: a driver that hangs must not stop the samples of the host."""
        gpus = Gpus(self._report_gpus)
        start_s = time.monotonic()
        try:
            while True:
                self._gpus = await asyncio.to_thread(gpus.read)
                self._gpus_read_s = time.monotonic()
                await _until(next_tick(start_s, self._settings.interval_s, time.monotonic()))
        finally:
            gpus.close()

    def _current_gpus(self) -> list[GpuReading]:
        """None while the driver hangs: what it told last is not so any more."""
        stale_s = _STALE_BEATS * self._settings.interval_s
        return self._gpus if time.monotonic() - self._gpus_read_s <= stale_s else []

    def _read(self, targets: Targets) -> Readings:
        return Readings(host=read_host(self._service.common.data_dir), processes=self._processes.read(targets))

    def _offer(self, sample: Sample) -> None:
        subject = self._service.bus.subjects.sample(sample.node, sample.source)
        self._service.bus.offer(subject, encode_sample(sample), msg_id=f"{subject}:{sample.at_ns}")

    def _report_gpus(self, sentence: str) -> None:
        if sentence:
            self._service.log.warning(sentence)
        else:
            self._service.log.info("the GPUs can be read again")

    def _hear(self, recorded: Recorded) -> None:
        # A beat that was withdrawn or has expired is empty.
        if recorded.data:
            presence = msgspec.json.decode(recorded.data, type=Presence)
            self._services = hear(self._services, presence, node=self._node)

    def _project(self, db: sqlite3.Connection, applied: Applied) -> None:
        targets = self._fold(_read_targets(db), applied)
        db.execute("delete from target")
        rows = [(source, target.pid, target.started_s) for source, target in targets.items()]
        db.executemany("insert into target values(?,?,?)", rows)

    def _evolve(self, applied: Applied) -> None:
        self._instances = self._fold(self._instances, applied)

    def _fold(self, targets: Targets, applied: Applied) -> Targets:
        history = ((recorded.sequence, event) for recorded, event in applied)
        return replay(partial(evolve, node=self._node), Snapshot(targets), history).state

    def _forget(self) -> None:
        self._instances = {}


_SCHEMA: Final = """
create table if not exists target(source text primary key, pid integer not null, started_s real) without rowid;
"""
"""The llama-servers of this node that run, so that a start need not read all events again."""


def _read_targets(db: sqlite3.Connection) -> Targets:
    return {source: Target(pid, started_s) for source, pid, started_s in db.execute("select * from target")}


async def _until(at_s: float) -> None:
    """Sleep until this time of the monotonic clock."""
    await asyncio.sleep(at_s - time.monotonic())

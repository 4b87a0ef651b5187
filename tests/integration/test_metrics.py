"""The metrics service as a process against a real nats-server."""

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import uvloop

from harness import nvml
from harness.deadline import until
from harness.nats import NatsServer
from harness.service import ServiceProcess
from llamaherd_shared.bus import Bus, Recorded
from llamaherd_shared.commands import History, HistoryQuery
from llamaherd_shared.errors import HerdError, Rejected
from llamaherd_shared.events.instance import InstanceExited, InstanceStarted
from llamaherd_shared.events.sample import Sample, decode_sample, encode_sample

NS = 1_000_000_000


class Metrics(ServiceProcess):
    """The service, the bus, and every sample seen on it."""

    def __init__(self, folder: Path, server: NatsServer, bus: Bus) -> None:
        super().__init__("metrics", folder, server)
        self.bus = bus
        self.samples: list[Sample] = []

    def see(self, recorded: Recorded) -> None:
        self.samples.append(decode_sample(recorded.data))

    def of(self, source: str) -> list[Sample]:
        return [sample for sample in self.samples if sample.source == source]

    async def offer(self, at_ns: int, values: dict[str, float], *, source: str = "host", node: str = "far") -> None:
        """Publish a sample as the collector of another host would."""
        sample = Sample(node=node, source=source, at_ns=at_ns, values=values)
        subject = self.bus.subjects.sample(node, source)
        await self.bus.publish(subject, encode_sample(sample), msg_id=f"{subject}:{at_ns}")

    async def history(self, **query: Any) -> History:
        now_ns = time.time_ns()
        asked = HistoryQuery(**({"from_ns": now_ns - 3600 * NS, "to_ns": now_ns + 60 * NS} | query))
        return await self.bus.request(self.bus.subjects.command("metrics", "history"), asked, History)

    async def recorded(self, points: int, **query: Any) -> History:
        """The history, once it has this many points."""
        answer = History(resolution_s=0, series=[])

        async def enough() -> bool:
            nonlocal answer
            answer = await self.history(**query)
            return sum(len(series.at_s) for series in answer.series) >= points

        deadline = time.monotonic() + 10
        while not await enough():
            assert time.monotonic() < deadline, f"{answer}\n{self.output}"
        return answer

    def content(self) -> dict[str, list[Any]]:
        """Every row of the recorder's own tables."""
        with contextlib.closing(sqlite3.connect(self.data_dir / "projections" / "metrics.v1.sqlite")) as db:
            tables = [name for (name,) in db.execute("select name from sqlite_master where type='table'")]
            return {table: db.execute(f"select * from {table}").fetchall() for table in tables}


@contextlib.asynccontextmanager
async def metrics(folder: Path, server: NatsServer) -> AsyncIterator[Metrics]:
    bus = await Bus.connect(server.url, service="test", timeout_s=10)
    await bus.ensure_streams()
    service = Metrics(folder, server, bus)
    watch = await bus.watch(bus.subjects.all("met"), service.see)
    try:
        yield service
    finally:
        service.clean_up()
        await watch.close()
        await bus.close()


def test_host_is_measured_and_its_history_is_kept(nats_server: NatsServer, tmp_path: Path) -> None:
    async def body() -> None:
        async with metrics(tmp_path, nats_server) as service:
            await service.start(service.bus, interval_s=0.2)
            await until(lambda: len(service.of("host")) >= 3, what="samples of the host")

            answer = await service.recorded(3, source="host", names=["memory_total_bytes"])
            (series,) = answer.series
            assert (series.node, series.source, series.name) == ("here", "host", "memory_total_bytes")
            assert set(series.mean) == {float(psutil.virtual_memory().total)}
            assert series.at_s == sorted(series.at_s)
            values = service.of("host")[-1].values
            assert 0 <= values["cpu_pct"] <= 100
            assert values["disk_total_bytes"] >= values["disk_used_bytes"] > 0
            assert values["uptime_s"] > 0
            assert await service.stop() == 0

    uvloop.run(body())


def test_samples_keep_their_rhythm(nats_server: NatsServer, tmp_path: Path) -> None:
    async def body() -> None:
        async with metrics(tmp_path, nats_server) as service:
            await service.start(service.bus, interval_s=0.25)
            await until(lambda: len(service.of("host")) >= 12, what="three seconds of samples")

            at_ns = [sample.at_ns for sample in service.of("host")]
            rounds = [round((at - at_ns[0]) / (0.25 * NS)) for at in at_ns]
            off_s = [abs((at - at_ns[0]) / NS - 0.25 * tick) for at, tick in zip(at_ns, rounds, strict=True)]
            # Every sample lies on the grid of its first one: lateness does not add up. A loaded machine may skip.
            assert sorted(off_s)[len(off_s) // 2] < 0.05
            assert len(set(rounds)) == len(rounds)

    uvloop.run(body())


BINDING = """
import sys, time
from pathlib import Path
sys.path.append({tests!r})
from harness.nvml import Driver
told = vars(Driver().binding())
globals().update({{name: told[name] for name in told if name.lower().startswith("nvml")}})
tell_memory = nvmlDeviceGetMemoryInfo
def nvmlDeviceGetMemoryInfo(gpu):
    while Path({hanging!r}).exists():
        time.sleep(0.02)
    return tell_memory(gpu)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere another library is looked for")
def test_driver_that_hangs_stops_the_samples_of_its_gpus_and_of_nothing_else(
    nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T29 (peers.md): llama-swap went on showing what its GPUs had told last."""
    hanging = tmp_path / "hanging"
    (tmp_path / "pynvml.py").write_text(BINDING.format(tests=str(Path(nvml.__file__).parents[1]), hanging=str(hanging)))
    (tmp_path / "libnvidia-ml.so.1").symlink_to(msgspec._core.__file__)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))

    async def body() -> None:
        async with metrics(tmp_path, nats_server) as service:
            await service.start(service.bus, interval_s=0.2)
            await until(lambda: len(service.of("gpu/0")) >= 3, what="samples of the GPU")

            hanging.touch()
            asked = len(service.of("host"))
            await until(lambda: len(service.of("host")) >= asked + 8, what="samples of the host go on")
            last_ns = service.of("gpu/0")[-1].at_ns
            assert sum(sample.at_ns > last_ns for sample in service.of("host")) >= 3, "those of the GPU do not"

            hanging.unlink()
            await until(lambda: service.of("gpu/0")[-1].at_ns > last_ns, what="it tells again")
            assert service.of("gpu/0")[-1].values["memory_used_bytes"] == 30

    uvloop.run(body())


def test_instance_is_measured_from_its_start_to_its_exit(nats_server: NatsServer, tmp_path: Path) -> None:
    async def body() -> None:
        async with metrics(tmp_path, nats_server) as service:
            process = psutil.Process()
            subject = service.bus.subjects.instance("here", "cria", 0)
            started = InstanceStarted(
                node="here",
                model="cria",
                at_ns=1,
                pid=process.pid,
                process_started_s=process.create_time(),
                host="127.0.0.1",
                port=1,
                generation=1,
            )
            await service.bus.append(subject, started, msg_id="started")
            await service.start(service.bus, interval_s=0.2)

            await until(lambda: service.of("instance/cria/0"), what="a sample of the instance")
            values = service.of("instance/cria/0")[-1].values
            assert set(values) == {"cpu_pct", "rss_bytes", "threads"}
            assert values["rss_bytes"] > 1_000_000

            exited = InstanceExited(node="here", model="cria", at_ns=2, cause="unload")
            await service.bus.append(subject, exited, msg_id="exited")
            hosts = len(service.of("host"))
            await until(lambda: len(service.of("host")) > hosts + 3, what="more samples of the host")
            assert service.of("instance/cria/0")[-1].at_ns < service.of("host")[-1].at_ns

            # The collector forgets over a restart neither what runs nor what has ended.
            await service.stop()
            service.samples.clear()
            await service.start(service.bus, interval_s=0.2)
            await until(lambda: len(service.of("host")) > 3, what="samples after the restart")
            assert service.of("instance/cria/0") == []

    uvloop.run(body())


def test_reused_process_id_is_not_taken_for_the_instance(nats_server: NatsServer, tmp_path: Path) -> None:
    async def body() -> None:
        async with metrics(tmp_path, nats_server) as service:
            started = InstanceStarted(
                node="here",
                model="cria",
                at_ns=1,
                pid=os.getpid(),
                process_started_s=psutil.Process().create_time() - 3600,
                host="127.0.0.1",
                port=1,
                generation=1,
            )
            await service.bus.append(service.bus.subjects.instance("here", "cria", 0), started, msg_id="started")
            await service.start(service.bus, interval_s=0.2)

            await until(lambda: len(service.of("host")) > 3, what="samples of the host")
            assert service.of("instance/cria/0") == []

    uvloop.run(body())


def test_service_processes_are_measured(nats_server: NatsServer, tmp_path: Path) -> None:
    async def body() -> None:
        async with metrics(tmp_path, nats_server) as service:
            await service.start(service.bus, interval_s=0.2)

            await until(lambda: service.of("service/metrics"), what="a sample of metrics itself")
            assert service.of("service/metrics")[0].values["rss_bytes"] > 1_000_000

    uvloop.run(body())


def test_projection_that_was_deleted_is_rebuilt_to_the_same_content(nats_server: NatsServer, tmp_path: Path) -> None:
    async def body() -> None:
        async with metrics(tmp_path, nats_server) as service:
            await service.start(service.bus, collect=False)
            begin_ns = time.time_ns() - 3000 * NS
            for tick in range(0, 3000, 7):
                await service.offer(begin_ns + tick * NS, {"cpu_pct": tick / 3, "load1": 0.1})
            await service.offer(begin_ns, {"cpu_pct": 1.0}, source="gpu/0")
            head = await service.bus.stream_head("HERD_METRICS")
            await until(lambda: service.content()["checkpoint"][0][2] == head.last, what="everything is recorded")
            await service.stop()
            before = service.content()
            assert before["raw"]

            service.delete_projections()
            await service.start(service.bus, collect=False)

            assert service.content() == before

    uvloop.run(body())


def test_killed_recorder_counts_every_sample_once(nats_server: NatsServer, tmp_path: Path) -> None:
    async def body() -> None:
        async with metrics(tmp_path, nats_server) as service:
            begin_ns = time.time_ns() - 600 * NS
            for round_ in range(3):
                await service.start(service.bus, collect=False)
                for tick in range(100):
                    await service.offer(begin_ns + (100 * round_ + tick) * NS, {"a": 1.0})
                service.kill()
            await service.start(service.bus, collect=False)

            (series,) = (await service.recorded(300, node="far", max_points=5000)).series
            assert len(series.at_s) == len(set(series.at_s)) == 300
            counts = sum(count for _, count, _ in service.content()["rollup_60s"])
            assert counts == 300

    uvloop.run(body())


def test_bytes_that_are_no_sample_are_kept_aside(nats_server: NatsServer, tmp_path: Path) -> None:
    async def body() -> None:
        async with metrics(tmp_path, nats_server) as service:
            await service.start(service.bus, collect=False)
            for number, junk in enumerate((b"", b"\xc1", b"\x81\xa4node\xa2\xff\xfe")):
                await service.bus.publish(service.bus.subjects.sample("far", "x"), junk, msg_id=f"junk{number}")
            await service.offer(time.time_ns(), {"a": 1.0})

            await service.recorded(1, node="far")
            assert len(service.content()["poison"]) == 3

    uvloop.run(body())


def test_query_that_makes_no_sense_is_refused_in_words(nats_server: NatsServer, tmp_path: Path) -> None:
    async def body() -> None:
        async with metrics(tmp_path, nats_server) as service:
            await service.start(service.bus, collect=False)

            with pytest.raises(Rejected, match="from_ns before to_ns"):
                await service.history(from_ns=5, to_ns=1)
            assert (await service.history(source="no such source")).series == []
            assert (await service.history(from_ns=-(2**70), to_ns=2**70)).series == []

    uvloop.run(body())


def test_collector_alone_keeps_nothing_and_answers_nothing(nats_server: NatsServer, tmp_path: Path) -> None:
    async def body() -> None:
        async with metrics(tmp_path, nats_server) as service:
            await service.start(service.bus, record=False, interval_s=0.2)
            await until(lambda: service.of("host"), what="a sample of the host")

            with pytest.raises(HerdError):
                await service.history()
            assert [path.name for path in service.projections] == ["metrics-instances.v1.sqlite"]

    uvloop.run(body())


def test_nats_server_may_be_killed(nats_server: NatsServer, tmp_path: Path) -> None:
    async def body() -> None:
        async with metrics(tmp_path, nats_server) as service:
            await service.start(service.bus, interval_s=0.2)
            await service.recorded(1, source="host", names=["load1"])

            nats_server.kill()
            nats_server.start()
            restarted_ns = time.time_ns()

            answer = None
            deadline = time.monotonic() + 15
            while time.monotonic() < deadline:
                with contextlib.suppress(HerdError):
                    answer = await service.history(source="host", names=["load1"], from_ns=restarted_ns + 2 * NS)
                    if answer.series:
                        break
            assert answer is not None
            assert answer.series, service.output
            assert await service.stop() == 0

    uvloop.run(body())


def test_unwritable_data_folder_is_one_sentence(nats_server: NatsServer, tmp_path: Path) -> None:
    service = ServiceProcess("metrics", tmp_path, nats_server)
    service.data_dir.write_text("a file where a folder should be")

    service.spawn()

    try:
        assert service.process is not None
        assert service.process.wait(60) == 1
        assert "cannot open the projection" in service.output
        assert "Traceback" not in service.output
    finally:
        service.clean_up()


def test_one_scrape_can_be_had_without_a_bus(tmp_path: Path) -> None:
    environment = {**os.environ, "LLAMAHERD_DATA_DIR": str(tmp_path / "not there yet"), "LLAMAHERD_NODE": "here"}
    command = [sys.executable, "-m", "llamaherd_metrics", "--once"]

    told = subprocess.run(command, capture_output=True, env=environment, timeout=30, check=True)

    samples = {sample["source"]: sample["values"] for sample in json.loads(told.stdout)}
    assert samples["host"]["memory_total_bytes"] > 0
    assert told.stderr == b""

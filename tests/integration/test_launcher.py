"""`llamaherd up` on real parts: what it starts, what it starts again, and that nothing is left behind."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from harness.deadline import until, wait_until
from harness.fake_llama_server import install_fake_llama_server
from harness.random_gguf import write_random_gguf
from llamaherd import __main__ as main
from llamaherd.client import Client
from llamaherd.herd import Herd
from llamaherd.launcher.nats_server import nats_spec
from llamaherd.launcher.probe import pick_port, wait_for_jetstream
from llamaherd.launcher.process import Child, ChildSpec, Gone
from llamaherd.launcher.store import prepare_data_dir, read_herd, seed_file
from llamaherd.permissions import SERVICES
from llamaherd_shared.bus import Bus
from llamaherd_shared.errors import Unavailable
from llamaherd_shared.events.sample import Sample, encode_sample

pytestmark = pytest.mark.integration

START_S = 40.0
"""On a busy machine; two seconds on an idle one."""
WHOLE_S = 5.0
"""What the herd promises after a kill; doubled here for busy test machines."""


class Up:
    """One `llamaherd up` as a child of the test."""

    def __init__(self, data_dir: Path, *more: str) -> None:
        self.data_dir = data_dir
        self.output = data_dir.with_suffix(".out")
        command = [sys.executable, "-m", "llamaherd", "up", "--data-dir", str(data_dir), *more]
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=clean()
            )

    @property
    def herd(self) -> Herd | None:
        return read_herd(self.data_dir)

    @property
    def pids(self) -> dict[str, int]:
        herd = self.herd
        return {one.name: one.pid for one in herd.processes} if herd else {}

    @property
    def text(self) -> str:
        return self.output.read_text()

    def wait_until_ready(self) -> "Up":
        def ready() -> bool:
            assert self.process.poll() is None, self.text
            herd = self.herd
            return herd is not None and herd.ready and herd.launcher.pid == self.process.pid

        wait_until(ready, within_s=START_S, what="the herd is ready")
        return self

    def everybody(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            left = self.everybody()
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(30)
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)


def clean() -> dict[str, str]:
    """The environment without settings of the person who runs the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LLAMAHERD_")}
    return kept | {"COLUMNS": "200"}


FREE_PORTS = ("--port", "0", "--ui-port", "0", "--nats-port", "0")


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    up = Up(tmp_path_factory.mktemp("herd") / "data", *FREE_PORTS)
    try:
        yield up.wait_until_ready()
    finally:
        up.end()


def ui_url(up: Up) -> str:
    assert up.herd is not None
    return up.herd.ui_url


def run(*words: str, data_dir: Path | None = None, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    environ = clean() | ({"LLAMAHERD_DATA_DIR": str(data_dir)} if data_dir else {})
    command = [sys.executable, "-m", "llamaherd", *words]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environ, timeout=timeout_s
    )


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """The one line on stderr."""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_it_starts_every_service_and_tells_the_addresses(up: Up) -> None:
    herd = up.herd

    assert herd is not None
    assert set(up.pids) == {"nats-server", *SERVICES}
    assert f"{herd.gateway_url}/v1" in up.text
    assert herd.ui_url in up.text


def test_secrets_are_for_the_owner_alone(up: Up) -> None:
    private = [*(up.data_dir / "nats").glob("*.seed"), up.data_dir / "nats" / "nats.conf", up.data_dir / "secret"]

    assert len(private) == 8
    assert {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o600}


def test_the_commands_show_it(up: Up, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LLAMAHERD_DATA_DIR", str(up.data_dir))

    def output(*words: str, code: int = 0) -> str:
        assert main.run(words) == code, capsys.readouterr().err
        return capsys.readouterr().out

    assert {service["service"] for service in json.loads(output("status", "--json"))["services"]} == set(SERVICES)
    assert output("models").startswith("No models yet")
    assert json.loads(output("ps", "--json")) == []
    assert json.loads(output("events", "--json", "--from-seq", "1").splitlines()[0])["type"] == "node.joined.v1"
    output("load", "nope", code=3)
    output("run", "nope", "hello", code=3)
    wait_until(lambda: "listening" in output("logs", "--source", "gateway"), what="the gateway's first line is stored")


def test_a_second_one_on_the_same_data_folder_is_told_who_holds_it(up: Up) -> None:
    done = run("up", *FREE_PORTS, data_dir=up.data_dir)

    assert done.returncode == 1
    assert f"process {up.process.pid}" in sentence(done)


def test_a_port_that_is_taken_is_named_with_its_holder_and_the_option(up: Up, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        done = run("up", "--port", str(port), "--ui-port", "0", data_dir=tmp_path / "other")

    assert done.returncode == 2
    assert f"port {port}" in sentence(done)
    assert f"process {os.getpid()}" in sentence(done)
    assert "--port" in sentence(done)


@pytest.mark.parametrize("name", ["nats-server", *SERVICES])
def test_what_is_killed_is_back_within_seconds(up: Up, name: str) -> None:
    before = up.pids[name]

    os.kill(before, signal.SIGKILL)

    def whole() -> bool:
        pids = up.pids
        if set(pids) != {"nats-server", *SERVICES} or pids[name] == before:
            return False
        with contextlib.suppress(Unavailable), Client(ui_url(up)) as client:
            ready = {service.service: service.pid for service in client.fleet().services if service.ready}
            return all(ready.get(service) == pids[service] for service in SERVICES)
        return False

    wait_until(whole, within_s=2 * WHOLE_S, what=f"the herd is whole after kill -9 of {name}")


def test_ctrl_c_stops_everything(tmp_path: Path) -> None:
    up = Up(tmp_path / "data", *FREE_PORTS)
    try:
        everybody = up.wait_until_ready().everybody()

        up.process.send_signal(signal.SIGINT)

        assert up.process.wait(30) == 0
        assert len(everybody) == 1 + len(SERVICES)
        assert not any(process.is_running() for process in everybody)
        assert up.herd is None
        assert "nothing is left running" in up.text
    finally:
        up.end()


@pytest.mark.timeout(300)
def test_a_killed_launcher_leaves_nothing_that_stays_or_is_in_the_way(tmp_path: Path) -> None:
    herds = [Up(tmp_path / "data", *FREE_PORTS)]
    try:
        everybody = herds[0].wait_until_ready().everybody()
        herds[0].process.kill()
        herds[0].process.wait(10)
        wait_until(lambda: not any(map(_runs, everybody)), within_s=30, what="every child has stopped by itself")

        herds.append(Up(tmp_path / "data", *FREE_PORTS))
        everybody = herds[1].wait_until_ready().everybody()
        herds[1].process.kill()
        herds[1].process.wait(10)

        herds.append(Up(tmp_path / "data", *FREE_PORTS).wait_until_ready())
        assert not any(map(_runs, everybody)), "the next one ends what is still there"
        assert run("down", data_dir=tmp_path / "data").returncode == 0
        assert herds[2].process.wait(10) == 0
    finally:
        for up in herds:
            up.end()


def with_model(folder: Path) -> tuple[str, ...]:
    """Options of a herd with a model and a fake llama-server."""
    models_dir = folder / "models"
    models_dir.mkdir()
    write_random_gguf(models_dir / "m.gguf", layers=1, width=16)
    return (*FREE_PORTS, "--llama-server", str(install_fake_llama_server(folder)), "--models-dir", str(models_dir))


def loaded_instance(up: Up) -> int:
    """Load the one model; the process id of its llama-server."""
    assert run("load", "m", data_dir=up.data_dir).returncode == 0
    return instance_pid(up) or 0


def instance_pid(up: Up) -> int | None:
    with Client(ui_url(up)) as client:
        instance = client.fleet().models[0].instance
    return instance.pid if instance is not None and instance.state == "ready" else None


@pytest.mark.timeout(300)
@pytest.mark.parametrize("ending", ["ctrl-c", "down"])
def test_llama_servers_outlive_a_killed_herd_and_are_stopped_with_the_next(tmp_path: Path, ending: str) -> None:
    options = with_model(tmp_path)
    herds = [Up(tmp_path / "data", *options)]
    try:
        llama_server = psutil.Process(loaded_instance(herds[0].wait_until_ready()))
        for pid in (herds[0].process.pid, *herds[0].pids.values()):
            os.kill(pid, signal.SIGKILL)
        herds[0].process.wait(10)

        herds.append(Up(tmp_path / "data", *options).wait_until_ready())
        assert instance_pid(herds[1]) == llama_server.pid

        if ending == "ctrl-c":
            herds[1].process.send_signal(signal.SIGINT)
        else:
            os.kill(herds[1].process.pid, signal.SIGKILL)
            herds[1].process.wait(10)
            os.kill(herds[1].pids["supervisor"], signal.SIGKILL)
            assert run("down", data_dir=tmp_path / "data").returncode == 0
        herds[1].process.wait(30)
        assert not _runs(llama_server)
    finally:
        for up in herds:
            up.end()


@pytest.mark.timeout(120)
def test_llama_server_that_lost_its_supervisor_leaves_no_zombie(tmp_path: Path) -> None:
    options = with_model(tmp_path)
    up = Up(tmp_path / "data", *options)
    try:
        pid = loaded_instance(up.wait_until_ready())
        supervisor = up.pids["supervisor"]
        os.kill(supervisor, signal.SIGKILL)
        wait_until(lambda: up.pids.get("supervisor", supervisor) != supervisor, what="a new supervisor")
        wait_until(lambda: "llama-server adopted" in (up.data_dir / "logs" / "supervisor.log").read_text())

        os.kill(pid, signal.SIGKILL)

        wait_until(lambda: not psutil.pid_exists(pid), what="it was collected")
        wait_until(lambda: instance_pid(up) not in (None, pid), what="it was replaced")
    finally:
        up.end()


def test_detached_it_runs_until_down(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    try:
        started = run("up", "--detach", *FREE_PORTS, data_dir=data_dir)
        herd = read_herd(data_dir)

        assert started.returncode == 0, started.stderr
        assert herd is not None
        assert herd.ready
        assert herd.ui_url in started.stdout
        assert run("status", data_dir=data_dir).returncode == 0
    finally:
        stopped = run("down", data_dir=data_dir)
    assert stopped.returncode == 0
    assert not any(psutil.pid_exists(one.pid) for one in (herd.launcher, *herd.processes))
    assert run("down", data_dir=data_dir).returncode == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("gateway:\n  prot: 1\n", ":2:3: unknown setting `gateway.prot`"),
        ("nats_ulr: x\n", ":1:1: unknown setting `nats_ulr`"),
        ("metrics:\n  interval_s: often\n", ":2:3: setting `metrics.interval_s`"),
        ("ui: [\n", "not valid YAML"),
    ],
)
def test_a_mistake_in_the_settings_is_one_sentence_with_its_place(tmp_path: Path, content: str, said: str) -> None:
    config = tmp_path / "llamaherd.yaml"
    config.write_text(content)

    done = run("up", "--config", str(config), *FREE_PORTS, data_dir=tmp_path / "data")

    assert done.returncode == 2
    assert said in sentence(done)
    assert not (tmp_path / "data").exists()


def test_a_data_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    done = run("up", *FREE_PORTS, data_dir=tmp_path / "file" / "data")

    assert done.returncode == 2
    assert "--data-dir" in sentence(done)


def test_the_world_is_let_in_only_when_told_so(tmp_path: Path) -> None:
    done = run("up", "--host", "0.0.0.0", *FREE_PORTS, data_dir=tmp_path / "data")

    assert done.returncode == 2
    assert "--insecure" in sentence(done)


def test_each_nkey_opens_only_what_its_service_needs(tmp_path: Path) -> None:
    asyncio.run(_try_the_doors(tmp_path / "data"))


async def _try_the_doors(data_dir: Path) -> None:
    prepare_data_dir(data_dir)
    port = pick_port(0)
    nats = Child(
        nats_spec(data_dir, port=port, prefix="herd", environ={}), data_dir, changed=lambda: None, gone=lambda _: None
    )
    await nats.start()
    try:
        await wait_for_jetstream(port, seed_file(data_dir, "admin"), timeout_s=20, tick=lambda: None)
        url = f"nats://127.0.0.1:{port}"
        with pytest.raises(Unavailable):
            await Bus.connect(url, service="metrics", timeout_s=1)
        bus = await Bus.connect(url, service="metrics", seed_file=seed_file(data_dir, "metrics"), timeout_s=10)
        try:
            await bus.ensure_streams()
            sample = encode_sample(Sample(node="box", source="host", at_ns=1, values={"cpu_pct": 1.0}))

            assert await bus.publish(bus.subjects.sample("box", "host"), sample, msg_id="1") == 1
            assert bus.troubles == 0
            forged = asyncio.create_task(bus.publish(bus.subjects.node("box"), b"{}", msg_id="2"))
            await until(lambda: bus.troubles, what="nats-server refuses a fact from metrics")
            forged.cancel()
            await asyncio.gather(forged, return_exceptions=True)
        finally:
            await bus.close()
    finally:
        await nats.stop(hurry=asyncio.Event())


def test_a_program_that_ignores_sigterm_is_killed_after_its_deadline(tmp_path: Path) -> None:
    async def stop_it() -> int:
        prepare_data_dir(tmp_path)
        ignore = (
            "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
        )
        child = make_child(tmp_path, ignore, stop_timeout_s=0.2)
        await child.start()
        await until(lambda: child.log_file.read_text(), what="it ignores signals now")
        assert child.started is not None
        pid = child.started.pid
        await child.stop(hurry=asyncio.Event())
        return pid

    assert not psutil.pid_exists(asyncio.run(stop_it()))


def test_a_program_that_refuses_its_settings_is_given_up_with_what_it_said(tmp_path: Path) -> None:
    gone: list[Gone] = []

    async def watch_it() -> None:
        prepare_data_dir(tmp_path)
        child = make_child(tmp_path, "import sys; sys.exit(print('no such port') or 2)", gone=gone)
        await child.start()
        await until(lambda: child.gave_up, what="it is given up")
        await child.stop(hurry=asyncio.Event())

    asyncio.run(watch_it())

    assert [one.gave_up for one in gone] == [True]
    assert gone[0].last_lines == ["no such port"]


def make_child(data_dir: Path, program: str, *, stop_timeout_s: float = 5.0, gone: list[Gone] | None = None) -> Child:
    spec = ChildSpec(name="program", command=[sys.executable, "-c", program], environ={}, stop_timeout_s=stop_timeout_s)
    heard = gone if gone is not None else []
    return Child(spec, data_dir, changed=lambda: None, gone=heard.append)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False

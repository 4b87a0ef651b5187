"""A supervisor under test: the real service as a process, a fake llama-server, and the facts it records."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import psutil

from harness.deadline import STEP_S, until, wait_until
from harness.fake_llama_server import install_fake_llama_server, set_switches
from harness.nats import NatsServer
from harness.random_gguf import write_random_gguf
from llamaherd_shared.bus import Bus, Recorded
from llamaherd_shared.commands import Accepted, CancelLoad, LoadModel, ModelReset, ResetModel, UnloadModel
from llamaherd_shared.events import Event, decode_event
from llamaherd_shared.events.instance import InstanceEvent, InstanceMeasured, InstanceProgressed
from llamaherd_shared.events.presence import Presence
from llamaherd_shared.model_options import LoadOptions
from llamaherd_shared.streams import EVENTS
from llamaherd_supervisor.command_line import INSTANCE_VARIABLE
from llamaherd_supervisor.lifecycle import Instance, State
from llamaherd_supervisor.projection import Known, evolve

QUICK: dict[str, Any] = {
    "scan_interval_s": 0.1,
    "backoff_base_s": 0.1,
    "backoff_max_s": 0.4,
    "max_crashes": 3,
    "stop_timeout_s": 1.0,
    "drain_timeout_s": 3.0,
    "probe_interval_s": 0.2,
    "probe_timeout_s": 1.0,
}
"""Settings that make a test fast; what they mean does not change."""


class Node:
    """One host: a data folder, a models folder, a supervisor that can be started, killed and started again."""

    def __init__(self, folder: Path, server: NatsServer, *, name: str = "here") -> None:
        self.folder, self.server, self.name = folder, server, name
        self.models_dir = folder / "models"
        self.data_dir = folder / "data"
        self.config = folder / "llamaherd.yaml"
        """Is there once `configure` was called."""
        self.models_dir.mkdir(parents=True, exist_ok=True)
        self.data_dir.mkdir(exist_ok=True)
        (folder / "secret").write_bytes(b"s3cret")
        self.llama_server: Path | None = install_fake_llama_server(folder)
        self.process: subprocess.Popen[bytes] | None = None
        self.settings = dict(QUICK)
        self.common: dict[str, Any] = {}
        """Settings at the top level of llamaherd.yaml."""

    def add_model(self, name: str, **switches: Any) -> Path:
        path = write_random_gguf(self.models_dir / f"{name}.gguf", layers=1, width=16)
        # As if it had been there for long: nobody waits whether it still grows.
        a_minute_ago = time.time() - 60
        os.utime(path, (a_minute_ago, a_minute_ago))
        if switches:
            set_switches(path, **switches)
        return path

    def configure(self, models: Any) -> None:
        """Write `models` of llamaherd.yaml, which is read at the next start and whenever it changes; or any text."""
        part = self.config.with_name("llamaherd.yaml.part")
        part.write_text(models if isinstance(models, str) else json.dumps({"models": models}))
        part.replace(self.config)

    def start(self, **settings: Any) -> subprocess.Popen[bytes]:
        """Start the supervisor; `output` has what it says."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("LLAMAHERD_")}
        environment |= {
            "LLAMAHERD_NODE": self.name,
            "LLAMAHERD_DATA_DIR": str(self.data_dir),
            "LLAMAHERD_NATS_URL": self.server.url,
            "LLAMAHERD_SECRET_FILE": str(self.folder / "secret"),
            "LLAMAHERD_SUPERVISOR_MODELS_DIR": str(self.models_dir),
        }
        if self.llama_server is not None:
            environment["LLAMAHERD_SUPERVISOR_LLAMA_SERVER"] = str(self.llama_server)
        for key, value in (self.settings | settings).items():
            environment[f"LLAMAHERD_SUPERVISOR_{key.upper()}"] = str(value)
        for key, value in self.common.items():
            environment[f"LLAMAHERD_{key.upper()}"] = str(value)
        arguments = ["--config", str(self.config)] if self.config.exists() else []
        with (self.folder / "supervisor.out").open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "llamaherd_supervisor", *arguments], stdout=out, stderr=out, env=environment
            )
        return self.process

    @property
    def output(self) -> str:
        return (self.folder / "supervisor.out").read_text()

    def run(self, within_s: float) -> int:
        """Start a supervisor that is expected to end by itself; returns its exit code."""
        process = self.start()
        try:
            return process.wait(within_s)
        finally:
            process.kill()
            process.wait(10)

    def kill(self) -> None:
        """kill -9, as a crash would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def stop(self, within_s: float = 15.0) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(within_s)

    def llama_servers(self, model: str = "") -> list[psutil.Process]:
        """Every running process that this node's supervisors started, for one model or for all."""
        return [process for name, process in self._marked() if model in ("", name)]

    def _marked(self) -> Iterator[tuple[str, psutil.Process]]:
        start = f"{self.data_dir}|{self.name}/"
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                mark = process.environ().get(INSTANCE_VARIABLE, "")
                if mark.startswith(start):
                    yield mark.removeprefix(start).split("/")[0], process

    @contextlib.contextmanager
    def crowding(self) -> Iterator[Counter[str]]:
        """The most processes that each model had at once, looked at all the while; under "" those of all together."""
        most, over = Counter[str](), threading.Event()

        def look() -> None:
            while not over.wait(STEP_S):
                models = [name for name, _ in self._marked()]
                most.update(Counter([*models, *[""] * len(models)]) - most)

        looking = threading.Thread(target=look)
        looking.start()
        try:
            yield most
        finally:
            over.set()
            looking.join()

    def clean_up(self) -> None:
        started: list[psutil.Process] = []
        if self.process is not None and self.process.poll() is None:
            # Held, so that it starts nothing more: what it is just starting does not bear the mark yet.
            self.process.send_signal(signal.SIGSTOP)
            started = psutil.Process(self.process.pid).children()
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(10)
        for process in (*started, *self.llama_servers()):
            with contextlib.suppress(psutil.Error):
                process.kill()
        wait_until(lambda: not self.llama_servers(), what="llama-servers of the test are gone")


class Herd:
    """The bus as a test sees it: every fact about the node, the state they fold to, and the commands."""

    def __init__(self, bus: Bus, node: Node, model: str) -> None:
        self.bus, self.node, self.model = bus, node, model
        self.facts: list[Event] = []
        self.sequences: list[int] = []
        """Stream sequence of each fact."""
        self.known = Known()
        self.ready_pid = 0
        """Process id of the supervisor that said last that it is ready."""
        self.note = ""
        """What is wrong, as its presence says."""

    async def follow(self) -> None:
        async for batch in self.bus.read(EVENTS, after=0):
            for recorded in batch:
                event = decode_event(recorded.data)
                if getattr(event, "node", "") != self.node.name:
                    continue
                self.facts.append(event)
                self.sequences.append(recorded.sequence)
                self.known = evolve(self.known, event, node=self.node.name)

    def instance(self, model: str = "") -> Instance:
        model = model or self.model
        return self.known.instances.get((model, 0), Instance(node=self.node.name, model=model))

    def history(self, model: str = "") -> list[InstanceEvent]:
        """The facts about one instance, without progress and measurements, which come when they come."""
        model = model or self.model
        kinds = get_args(InstanceEvent)
        facts = [fact for fact in self.facts if isinstance(fact, kinds) and fact.model == model]
        return [fact for fact in facts if not isinstance(fact, InstanceProgressed | InstanceMeasured)]

    def kinds(self, model: str = "") -> list[str]:
        return [type(fact).__name__.removeprefix("Instance").lower() for fact in self.history(model)]

    async def load(self, model: str = "", *, by: str = "", for_request: bool = False, **options: Any) -> Accepted:
        subject = self.bus.subjects.command("supervisor", "load", node=self.node.name)
        command = LoadModel(model=model or self.model, by=by, options=LoadOptions(**options), for_request=for_request)
        return await self.bus.request(subject, command, Accepted)

    async def cancel_load(self, *, by: str) -> Accepted:
        subject = self.bus.subjects.command("supervisor", "cancel-load", node=self.node.name)
        return await self.bus.request(subject, CancelLoad(model=self.model, by=by), Accepted)

    async def unload(self, model: str = "") -> Accepted:
        subject = self.bus.subjects.command("supervisor", "unload", node=self.node.name)
        return await self.bus.request(subject, UnloadModel(model=model or self.model), Accepted)

    async def reset(self) -> ModelReset:
        subject = self.bus.subjects.command("supervisor", "reset", node=self.node.name)
        return await self.bus.request(subject, ResetModel(model=self.model), ModelReset)

    async def state(self, state: State, model: str = "", *, within_s: float = 10.0) -> Instance:
        def reached() -> Instance | None:
            instance = self.instance(model)
            return instance if instance.state is state else None

        try:
            found = await until(reached, within_s=within_s, what=f"{model or self.model} is {state}")
        except AssertionError as error:
            raise AssertionError(f"{error}\nfacts: {self.kinds(model)}\n{self.node.output[-4000:]}") from None
        assert found is not None
        return found

    async def offered(self, model: str = "") -> None:
        """Wait until the model may be loaded."""
        model = model or self.model
        await until(lambda: model in self.known.models, what=f"a fact about {model}")

    async def serving(self) -> None:
        """Wait until the supervisor answers commands."""
        process = self.node.process
        assert process is not None
        await until(lambda: process.poll() is not None or self.ready_pid == process.pid, within_s=15, what="it serves")
        assert process.poll() is None, self.node.output


@contextlib.asynccontextmanager
async def herd_of(node: Node, model: str = "m") -> AsyncIterator[Herd]:
    """Connect to the node's bus, follow the facts and the supervisor's presence; `model` is the one it speaks of."""
    bus = await Bus.connect(node.server.url, service="test", timeout_s=10)
    await bus.ensure_streams()
    herd = Herd(bus, node, model)

    def beat(recorded: Recorded) -> None:
        presence = msgspec.json.decode(recorded.data or b"null", type=Presence | None)
        if presence is not None and presence.ready:
            herd.ready_pid, herd.note = presence.pid, presence.note

    watch = await bus.watch(bus.subjects.presence(node.name, "supervisor"), beat)
    following = asyncio.create_task(herd.follow())
    try:
        yield herd
    finally:
        # nats-py swallows a cancellation that meets it while it flushes: cancel until it is done.
        while not following.done():
            following.cancel()
            await asyncio.wait({following}, timeout=0.1)
        await watch.close()
        await bus.close()

"""A real gateway process on a real nats-server, and a herd for it to find: fake llama-servers, facts written by hand.

`Herd` writes what a supervisor would write and answers `load` as one would; how it does so is up to the test.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import httpx
import msgspec

from harness.deadline import until, wait_until
from llamaherd_shared.bus import Bus
from llamaherd_shared.commands import Accepted, CancelLoad, LoadModel
from llamaherd_shared.events import decode_event
from llamaherd_shared.events.instance import (
    InstanceExited,
    InstanceFailed,
    InstanceProgressed,
    InstanceReady,
    InstanceStarted,
)
from llamaherd_shared.events.model import ModelFound, ModelRejected
from llamaherd_shared.events.node import NodeJoined, NodeLeft
from llamaherd_shared.events.presence import BEAT_S, TTL_S, Presence
from llamaherd_shared.events.request import RequestFinished, requests_of
from llamaherd_shared.service import new_id
from llamaherd_shared.streams import REQUESTS
from llamaherd_shared.subjects import Subjects
from llamaherd_shared.tasks import end
from llamaherd_shared.upstream_key import upstream_key

SECRET = b"a secret for tests"
NODE = "test.node"
FAKE_LLAMA_SERVER = Path(__file__).with_name("fake_llama_server.py")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def as_variable(value: Any) -> str:
    """A setting as its variable: mappings and lists as JSON, which is YAML."""
    return json.dumps(value) if isinstance(value, dict | list) else str(value)


class GatewayProcess:
    """`python -m llamaherd_gateway`, with its output kept."""

    def __init__(
        self, folder: Path, nats_url: str, *, models: Any = None, config: Path | None = None, **settings: Any
    ) -> None:
        """`models`: as in llamaherd.yaml; `config`: that file."""
        self.arguments = ["--config", str(config)] if config is not None else []
        self.folder, self.port = folder, free_port()
        self.log = folder / "gateway.log"
        folder.mkdir(parents=True, exist_ok=True)
        secret = folder / "secret"
        secret.write_bytes(SECRET)
        variables = {
            "LLAMAHERD_NODE": NODE,
            "LLAMAHERD_DATA_DIR": str(folder),
            "LLAMAHERD_NATS_URL": nats_url,
            "LLAMAHERD_SECRET_FILE": str(secret),
            "LLAMAHERD_GATEWAY_PORT": str(self.port),
            "LLAMAHERD_GATEWAY_OLLAMA_PORT": "0",
            "LLAMAHERD_GATEWAY_LMSTUDIO_PORT": "0",
        }
        variables |= {f"LLAMAHERD_GATEWAY_{name.upper()}": as_variable(value) for name, value in settings.items()}
        if models is not None:
            variables["LLAMAHERD_MODELS"] = as_variable(models)
        self._environment = os.environ | variables
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, *, wait_ready: bool = True) -> "GatewayProcess":
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "llamaherd_gateway", *self.arguments]
            self.process = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)
        if wait_ready:
            wait_until(self._is_ready, within_s=20, what="the gateway is ready")
        return self

    def _is_ready(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"the gateway ended:\n{self.log.read_text()[-3000:]}")
        try:
            return httpx.get(f"{self.url}/readyz", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def stop(self, *, within_s: float = 15.0) -> float:
        """SIGTERM; returns how many seconds the stop took."""
        assert self.process is not None
        began = time.monotonic()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(within_s)
        return time.monotonic() - began

    def rss_bytes(self) -> int:
        assert self.process is not None
        fields = Path(f"/proc/{self.process.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


async def flood(gateway: GatewayProcess, model: str, *, count: int, connections: int = 8) -> list[str]:
    """So many short requests as fast as they are answered; answers what the gateway calls them."""
    content = json.dumps({"model": model, "content": "x"}).encode()
    request = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(content) + content
    ids: list[str] = []

    async def work() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        for _ in range(count // connections):
            writer.write(request)
            lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
            assert lines[0].split()[1] == "200", lines
            headers = dict(line.split(": ", 1) for line in lines[1:] if line)
            await reader.readexactly(int(headers["content-length"]))
            ids.append(headers["x-request-id"])
        writer.close()

    await asyncio.gather(*[work() for _ in range(connections)])
    return ids


def name_of(model: str, index: int) -> str:
    """Of an instance, in the tables of a herd; the first one's is the model's."""
    return model if index == 0 else f"{model}/{index}"


class Herd:
    """One node with models. Open it with `open_herd`."""

    def __init__(self, bus: Bus, folder: Path, gateway: "GatewayProcess | None") -> None:
        self.bus, self.folder, self.gateway = bus, folder, gateway
        self.loads: list[str] = []
        """Every load that was asked for."""
        self.cancelled_loads: list[str] = []
        """Every load that a gateway took back."""
        self.on_load: Callable[[str], Awaitable[None]] = self._start_quietly
        self.processes: dict[str, asyncio.subprocess.Process] = {}
        self.ports: dict[str, int] = {}
        self._generations: dict[str, int] = {}
        self._sequences: dict[str, int] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def beat(self) -> None:
        """Say that the node's supervisor is alive, until cancelled."""
        beat = Presence(node=NODE, service="supervisor", version="0", pid=1, started_ns=1, ready=True)
        while True:
            await self.bus.beat(self.bus.subjects.presence(NODE, "supervisor"), msgspec.json.encode(beat), TTL_S)
            await asyncio.sleep(BEAT_S)

    async def append(self, event: Any) -> int:
        match event:
            case NodeJoined() | NodeLeft():
                subject = self.bus.subjects.node(event.node)
            case ModelFound() | ModelRejected():
                subject = self.bus.subjects.model(event.node, event.model)
            case _:
                subject = self.bus.subjects.instance(event.node, event.model, event.index)
        sequence = await self.bus.append(subject, event, msg_id=new_id())
        if hasattr(event, "model"):
            self._sequences[event.model] = sequence
        return sequence

    async def add_model(self, model: str, *, capabilities: Sequence[str] = (), **switches: Any) -> None:
        """A model file on disk, as a supervisor finds it; returns when the gateway knows it.

        Switches: `fake_llama_server.Switches`.
        """
        path = self.folder / f"{model}.gguf"
        path.touch()
        if switches:
            self.switch(model, **switches)
        await self.append(
            ModelFound(
                node=NODE,
                model=model,
                at_ns=time.time_ns(),
                path=str(path),
                size_bytes=1,
                modified_ns=10**18,
                chat=True,
                capabilities=list(capabilities),
            )
        )
        if self.gateway is not None:
            async with httpx.AsyncClient(verify=False) as client:
                url = f"{self.gateway.url}/v1/models/{model}"
                deadline = time.monotonic() + 10
                while (await client.get(url)).status_code != 200:
                    assert time.monotonic() < deadline, f"the gateway does not see {model}"
                    await asyncio.sleep(0.01)

    def switch(self, model: str, **switches: Any) -> None:
        part = self.folder / f"{model}.part"
        part.write_text(json.dumps(switches))
        part.replace(self.folder / f"{model}.gguf.fake.json")

    async def spawn(self, model: str, *, slots: int = 4, port: int | None = None, index: int = 0) -> int:
        """Start the process and say so; returns the port."""
        name = name_of(model, index)
        generation = self._generations[name] = self._generations.get(name, 0) + 1
        port = self.ports[name] = port or free_port()
        key = upstream_key(SECRET, node=NODE, model=model, index=index, generation=generation)
        command = [sys.executable, "-I", "-S", str(FAKE_LLAMA_SERVER), "-m", str(self.folder / f"{model}.gguf")]
        command += ["--port", str(port), "--alias", model, "--api-key", key, "--parallel", str(slots)]
        with (self.folder / f"{model}.log").open("ab") as log:
            process = self.processes[name] = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
        await self.append(
            InstanceStarted(
                node=NODE,
                model=model,
                index=index,
                at_ns=time.time_ns(),
                pid=process.pid,
                process_started_s=time.time(),
                host="127.0.0.1",
                port=port,
                generation=generation,
            )
        )
        return port

    async def start(self, model: str, *, slots: int = 4, index: int = 0) -> None:
        """Spawn, wait until healthy, say that it is ready."""
        port = await self.spawn(model, slots=slots, index=index)
        async with httpx.AsyncClient(verify=False) as client:
            deadline = time.monotonic() + 15
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    if (await client.get(f"http://127.0.0.1:{port}/health")).status_code == 200:
                        break
                assert time.monotonic() < deadline, (self.folder / f"{model}.log").read_text()[-2000:]
                await asyncio.sleep(0.02)
        await self.say_ready(model, slots=slots, index=index)

    async def say_ready(self, model: str, *, slots: int = 4, index: int = 0) -> None:
        values = {"load_s": 0.1, "slots": slots, "context_tokens": 512}
        await self.append(InstanceReady(node=NODE, model=model, index=index, at_ns=time.time_ns(), **values))

    async def say_progress(self, model: str, ratio: float) -> None:
        await self.append(
            InstanceProgressed(node=NODE, model=model, at_ns=time.time_ns(), stage="weights", ratio=ratio)
        )

    async def say_exited(self, model: str, **fields: Any) -> None:
        values = {"cause": "crash", "signal": "SIGKILL"} | fields
        await self.append(InstanceExited(node=NODE, model=model, at_ns=time.time_ns(), **values))

    async def say_failed(self, model: str, reason: str, last_lines: list[str]) -> None:
        await self.append(
            InstanceFailed(node=NODE, model=model, at_ns=time.time_ns(), reason=reason, last_lines=last_lines)
        )

    async def kill(self, model: str) -> None:
        """kill -9; says nothing."""
        process = self.processes[model]
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()

    async def add_ready_model(
        self, model: str, *, slots: int = 4, capabilities: Sequence[str] = (), **switches: Any
    ) -> None:
        await self.add_model(model, capabilities=capabilities, **switches)
        await self.start(model, slots=slots)

    async def state(self, model: str, *, index: int = 0) -> dict[str, Any]:
        """What the fake llama-server has seen."""
        port = self.ports[name_of(model, index)]
        # Without certificates, which take longer to load than all the rest.
        async with httpx.AsyncClient(verify=False) as client:
            answer: dict[str, Any] = (await client.get(f"http://127.0.0.1:{port}/fake/state")).json()
            return answer

    async def finished(
        self, count: int, *, model: str, route: str = "", within_s: float = 10.0
    ) -> list[RequestFinished]:
        """The first `count` events of requests for `model`; fails when there are not as many, or more.

        `route`: of this one only.
        """
        found: list[RequestFinished] = []

        async def collect() -> None:
            async for batch in self.bus.read(REQUESTS, after=0):
                events = [event for recorded in batch for event in requests_of(decode_event(recorded.data))]
                found.extend(event for event in events if event.model == model and route in ("", event.route))

        collecting = asyncio.create_task(collect())
        try:
            await until(lambda: len(found) >= count, within_s=within_s, what=f"{count} events of {model}")
        finally:
            collecting.cancel()
            await asyncio.gather(collecting, return_exceptions=True)
        assert len(found) == count, found
        return found

    async def answer_load(self, command: LoadModel) -> Accepted:
        self.loads.append(command.model)
        accepted = Accepted(
            node=NODE, model=command.model, state="stopped", sequence=self._sequences.get(command.model, 0)
        )
        self._tasks.append(asyncio.create_task(self._on_load(command.model)))
        return accepted

    async def answer_cancel_load(self, command: CancelLoad) -> Accepted:
        self.cancelled_loads.append(command.model)
        sequence = self._sequences.get(command.model, 0)
        return Accepted(node=NODE, model=command.model, state="loading", sequence=sequence)

    async def _on_load(self, model: str) -> None:
        await self.on_load(model)

    async def _start_quietly(self, model: str) -> None:
        process = self.processes.get(model)
        if process is None or process.returncode is not None:
            await self.start(model)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for model in self.processes:
            await self.kill(model)


@contextlib.asynccontextmanager
async def open_herd(nats_url: str, gateway: GatewayProcess | None = None) -> AsyncIterator[Herd]:
    """Join as a node, answer `load`; on the way out every process is ended and said to be gone."""
    bus = await Bus.connect(nats_url, service="test", subjects=Subjects(), timeout_s=10)
    await bus.ensure_streams()
    with tempfile.TemporaryDirectory() as folder:
        herd = Herd(bus, Path(folder), gateway)
        await herd.append(
            NodeJoined(
                node=NODE, at_ns=time.time_ns(), version="0", cpus=1, memory_bytes=1, models_dir=folder, llama_server=""
            )
        )
        command = partial(bus.subjects.command, "supervisor", node=NODE)
        served = [
            await bus.serve(command("load"), LoadModel, herd.answer_load),
            await bus.serve(command("cancel-load"), CancelLoad, herd.answer_cancel_load),
        ]
        beating = asyncio.create_task(herd.beat())
        try:
            yield herd
        finally:
            await end(beating)
            for each in served:
                await each.drain()
            await herd.close()
            await bus.close()


def transport_of(writer: asyncio.StreamWriter) -> asyncio.Transport:
    """Of a socket: what it is read by, too. `StreamWriter` only promises that it can be written to."""
    return cast(asyncio.Transport, writer.transport)


def run_in_herd(nats_url: str, gateway: GatewayProcess, scenario: Callable[[Herd], Awaitable[None]]) -> None:
    """Run one scenario with a herd of its own; it has a minute."""

    async def main() -> None:
        async with open_herd(nats_url, gateway) as herd:
            await asyncio.wait_for(scenario(herd), 60)

    asyncio.run(main())

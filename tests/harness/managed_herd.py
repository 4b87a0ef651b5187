"""Real gateways, a real supervisor and a fake hub, with fake llama-servers: what managing models needs."""

import contextlib
import hashlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import ollama

from harness.deadline import wait_until
from harness.fake_hub import FakeHub, Switches
from harness.fake_llama_server import set_switches
from harness.gateway import SECRET, GatewayProcess
from harness.nats import NatsServer
from harness.random_gguf import write_random_gguf
from harness.supervisor import Node

NUMBERS = itertools.count(1)


class ManagedHerd:
    """One node with a supervisor, two gateways, a hub. Every test uses models of its own."""

    def __init__(
        self, folder: Path, server: NatsServer, hub: FakeHub, *, supervisor: dict[str, Any], **settings: Any
    ) -> None:
        self.folder, self.server, self.hub = folder, server, hub
        self.node = Node(folder / "node", server, name="managed")
        (self.node.folder / "secret").write_bytes(SECRET)
        self.node.settings |= {"hub_url": hub.url, "pull_backoff_s": 0.02, "pull_retries": 2, "hub_token": ""}
        self.node.settings |= supervisor
        if "models" in settings:
            self.node.configure(settings["models"])
        self.gateway = self.new_gateway("gateway", **settings)
        self.other = self.new_gateway("other", **settings)
        self.client = ollama.Client(self.gateway.url, timeout=20)
        self.http = httpx.Client(base_url=self.gateway.url, timeout=20)

    def new_gateway(self, name: str, **settings: Any) -> GatewayProcess:
        return GatewayProcess(self.folder / name, self.server.url, ask_timeout_s=3, load_timeout_s=10, **settings)

    def start(self) -> "ManagedHerd":
        self.node.start()
        self.gateway.start()
        self.other.start()
        path = self.node.add_model("first")
        wait_until(lambda: "first" in self.names(), what="the supervisor has found a model")
        path.unlink()
        wait_until(lambda: "first" not in self.names(), what="the supervisor has seen it go")
        return self

    def stop(self) -> None:
        self.hub.go_on.set()
        self.client.close()
        self.http.close()
        for gateway in (self.gateway, self.other):
            if gateway.process is not None:
                gateway.stop()
        self.node.clean_up()

    # What there is.

    def names(self, gateway: GatewayProcess | None = None) -> list[str]:
        """Every name that can be asked for."""
        answer = httpx.get(f"{(gateway or self.gateway).url}/v1/models", timeout=5).raise_for_status()
        return [entry["id"] for entry in answer.json()["data"]]

    def new_name(self) -> str:
        return f"model{next(NUMBERS)}"

    def add_model(self, **switches: Any) -> str:
        """A model of its own for a test; returns its name once both gateways know it."""
        name = self.new_name()
        self.node.add_model(name, **switches)
        wait_until(lambda: name in self.names() and name in self.names(self.other), what=f"{name} is known")
        return name

    def switch(self, model: str, **switches: Any) -> None:
        """How its llama-server behaves from now on."""
        set_switches(self.node.models_dir / f"{model}.gguf", **switches)

    def new_content(self) -> bytes:
        """A model's file that nobody has yet."""
        path = write_random_gguf(self.folder / "new.gguf", layers=1, width=16, seed=next(NUMBERS))
        return path.read_bytes()

    def add_repository(self, *quantizations: str, **switches: Any) -> tuple[str, str]:
        """(repository, the name its files have before the quantization)"""
        number = next(NUMBERS)
        repository, stem = f"maker/Tiny{number}-GGUF", f"Tiny{number}"
        files = {f"{stem}-{quantization}.gguf": self.new_content() for quantization in quantizations}
        self.hub.files[repository] = {"README.md": b"#", **files}
        self.hub.switches = Switches(**switches)
        self.hub.go_on.clear()
        return repository, stem

    # What llama-servers see and do.

    def state(self, model: str) -> dict[str, Any]:
        """What the fake llama-server of a loaded model has seen."""
        (process,) = self.node.llama_servers(model)
        words = process.cmdline()
        port = words[words.index("--port") + 1]
        answer: dict[str, Any] = httpx.get(f"http://127.0.0.1:{port}/fake/state", timeout=5).json()
        return answer

    def is_loaded(self, model: str) -> bool:
        return bool(self.node.llama_servers(model))

    def until_unloaded(self, model: str, *, within_s: float = 5.0) -> None:
        """Until its process is gone, and the gateway has heard so: what was said of it ends with that."""

        def is_listed() -> bool:
            with contextlib.suppress(httpx.TransportError):  # the gateway does not run
                return self.expires(model) is not None
            return False

        wait_until(
            lambda: not self.is_loaded(model) and not is_listed(), within_s=within_s, what=f"{model} is unloaded"
        )

    def until_busy(self, model: str) -> None:
        def is_busy() -> bool:
            with contextlib.suppress(httpx.HTTPError):  # it does not listen yet
                return self.is_loaded(model) and self.state(model)["active"] > 0
            return False

        wait_until(is_busy, what=f"{model} is at work")

    def expires(self, model: str, gateway: GatewayProcess | None = None) -> str | None:
        """What /api/ps says; `None` when the model is not loaded."""
        answer = httpx.get(f"{(gateway or self.gateway).url}/api/ps", timeout=5).raise_for_status()
        found = [entry["expires_at"] for entry in answer.json()["models"] if entry["name"] == f"{model}:latest"]
        return found[0] if found else None

    def chat(self, model: str, **fields: Any) -> httpx.Response:
        """One by OpenAI's route."""
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}], **fields}
        return self.http.post("/v1/chat/completions", json=body)


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def records_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The lines of a stream."""
    assert response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.read().decode().splitlines()]


@contextlib.contextmanager
def managed_herd(
    folder: Path, server: NatsServer, *, supervisor: dict[str, Any] | None = None, **settings: Any
) -> Iterator[ManagedHerd]:
    """`supervisor`: settings of its own; the others are the gateways', `models` everybody's."""
    with FakeHub() as hub:
        herd = ManagedHerd(folder, server, hub, supervisor=supervisor or {}, **settings)
        try:
            yield herd.start()
        finally:
            herd.stop()

"""Two nodes with the same models, each a real supervisor, and two gateways that ask where to load them."""

import asyncio
import contextlib
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import uvloop

from harness.deadline import wait_until
from harness.gateway import SECRET, GatewayProcess
from harness.nats import NatsServer
from harness.supervisor import Node
from llamaherd_shared.bus import Bus
from llamaherd_shared.events import decode_event
from llamaherd_shared.events.alias import AliasSet
from llamaherd_shared.events.model import ModelFound
from llamaherd_shared.service import new_id
from llamaherd_shared.streams import EVENTS

MIB = 2**20
NUMBERS = itertools.count(1)
ROOM_FOR_ONE = {"memory_budget": "130 MiB", "min_residence_s": 0.2, "release_s": 0.0}


class Pair:
    """Nodes `a` and `b`, gateways `left` and `right`."""

    def __init__(self, folder: Path, server: NatsServer, *, models: Any = None, **settings: Any) -> None:
        self.server = server
        self.nodes = [Node(folder / name, server, name=name) for name in ("a", "b")]
        for node in self.nodes:
            (node.folder / "secret").write_bytes(SECRET)
            node.settings |= ROOM_FOR_ONE
            if models is not None:
                node.configure(models)
        self.gateways = [
            GatewayProcess(folder / name, server.url, models=models, ask_timeout_s=3, **settings)
            for name in ("left", "right")
        ]

    def add_model(self, **switches: Any) -> str:
        """On both nodes; returns its name once both gateways know that it is on both."""
        name = f"model{next(NUMBERS)}"
        for node in self.nodes:
            os.truncate(node.add_model(name, takes_mib=60, **switches), 60 * MIB)
        uvloop.run(self._until_told(name))
        for gateway in self.gateways:
            wait_until(lambda gateway=gateway: f"all-{name}" in known(gateway), what=f"{name} is known")
        return name

    async def _until_told(self, name: str) -> None:
        """Until both nodes have told of it; an alias that is told after that shows who has heard of both."""
        bus = await Bus.connect(self.server.url, service="test", timeout_s=10)
        told: set[str] = set()
        async with asyncio.timeout(10):
            async for batch in bus.read(EVENTS, after=0):
                events = [decode_event(recorded.data) for recorded in batch]
                told |= {event.node for event in events if isinstance(event, ModelFound) and event.model == name}
                if told == {node.name for node in self.nodes}:
                    break
        alias = AliasSet(alias=f"all-{name}", at_ns=time.time_ns(), model=name)
        await bus.append(bus.subjects.alias(alias.alias), alias, msg_id=new_id())
        await bus.close()

    def places(self, model: str) -> list[str]:
        """The nodes where it is loaded."""
        return [node.name for node in self.nodes for _ in node.llama_servers(model)]


def known(gateway: GatewayProcess) -> list[str]:
    return [entry["id"] for entry in httpx.get(f"{gateway.url}/v1/models", timeout=5).json()["data"]]


def chat(gateway: GatewayProcess, model: str, *, timeout_s: float = 20) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
    return httpx.post(f"{gateway.url}/v1/chat/completions", json=body, timeout=timeout_s)


@contextlib.contextmanager
def make_pair(folder: Path, server: NatsServer, *, models: Any = None, **settings: Any) -> Iterator[Pair]:
    """`models`: as in llamaherd.yaml, for all of them; `settings`: of the gateways."""
    for name in ("a", "b"):
        (folder / name).mkdir()
    pair = Pair(folder, server, models=models, **settings)
    yield pair
    for gateway in pair.gateways:
        if gateway.process is not None:
            with contextlib.suppress(Exception):
                gateway.stop()
    for node in pair.nodes:
        node.clean_up()


def start(pair: Pair, **settings: dict[str, str]) -> Pair:
    """`settings`: of a node by its name, on top of the others."""
    for node in pair.nodes:
        node.start(**settings.get(node.name, {}))
    for gateway in pair.gateways:
        gateway.start()
    return pair

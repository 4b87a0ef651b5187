"""A conversation goes back to the llama-server that has its beginning in its KV cache: two real ones, one gateway."""

import asyncio
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from harness.deadline import wait_until
from harness.gateway import SECRET, GatewayProcess, free_port
from harness.herd import llama_server_or_none
from harness.nats import NatsServer
from llamaherd_shared.bus import Bus
from llamaherd_shared.events.instance import InstanceReady, InstanceStarted
from llamaherd_shared.events.model import ModelFound
from llamaherd_shared.events.node import NodeJoined
from llamaherd_shared.service import new_id
from llamaherd_shared.upstream_key import upstream_key

CRIA = Path(__file__).parents[2] / "llamaherd" / "llamaherd" / "demo" / "cria.gguf"
NODES = ("left", "right")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    program = llama_server_or_none()
    if program is None:
        pytest.skip("no llama-server: build one with `uv run llamaherd install llama-server` (about five minutes)")
    folder = tmp_path_factory.mktemp("affinity")
    nats = NatsServer(folder / "nats").start()
    ports = {node: free_port() for node in NODES}
    servers = []
    for node, port in ports.items():
        key = upstream_key(SECRET, node=node, model="cria", index=0, generation=1)
        command = [str(program), "-m", str(CRIA), "--port", str(port), "--api-key", key, "--alias", "cria"]
        command += ["-np", "4", "-c", "8192", "-t", "1", "--no-webui"]
        with (folder / f"{node}.log").open("wb") as log:
            servers.append(subprocess.Popen(command, stdout=log, stderr=log))
    asyncio.run(tell(nats.url, ports))
    for port in ports.values():
        wait_until(lambda port=port: is_healthy(port), within_s=30, what="llama-server is ready")  # type: ignore[misc]
    process = GatewayProcess(folder / "gateway", nats.url).start()
    yield process
    process.stop()
    for server in servers:
        server.kill()
        server.wait()
    nats.stop()


def is_healthy(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


async def tell(nats_url: str, ports: dict[str, int]) -> None:
    """What the supervisors of two nodes would have said."""
    bus = await Bus.connect(nats_url, service="test", timeout_s=10)
    await bus.ensure_streams()
    for node, port in ports.items():
        base: dict[str, Any] = {"node": node, "at_ns": time.time_ns()}
        joined = NodeJoined(version="0", cpus=1, memory_bytes=1, models_dir="", llama_server="", **base)
        await bus.append(bus.subjects.node(node), joined, msg_id=new_id())
        found = ModelFound(model="cria", path="", size_bytes=1, modified_ns=1, chat=True, **base)
        await bus.append(bus.subjects.model(node, "cria"), found, msg_id=new_id())
        instance = bus.subjects.instance(node, "cria", 0)
        started = InstanceStarted(
            model="cria", pid=1, process_started_s=1.0, host="127.0.0.1", port=port, generation=1, **base
        )
        await bus.append(instance, started, msg_id=new_id())
        ready = InstanceReady(model="cria", load_s=1.0, slots=4, context_tokens=2048, **base)
        await bus.append(instance, ready, msg_id=new_id())
    await bus.close()


def test_a_conversation_is_read_once_and_not_again_at_every_turn(gateway: GatewayProcess) -> None:
    cached = prompted = 0

    async def talk(client: httpx.AsyncClient, number: int) -> None:
        nonlocal cached, prompted
        question = f"Conversation {number}: " + "what does a llama eat and where does it live? " * 6
        messages = [{"role": "user", "content": question}]
        for turn in range(4):
            body = {"model": "cria", "messages": messages, "max_tokens": 24, "temperature": 0}
            answer = (await client.post("/v1/chat/completions", json=body)).json()
            messages.append(answer["choices"][0]["message"])
            messages.append({"role": "user", "content": f"and then, {turn}?"})
            if turn:
                cached += answer["timings"]["cache_n"]
                prompted += answer["usage"]["prompt_tokens"]

    async def main() -> None:
        async with httpx.AsyncClient(base_url=gateway.url, timeout=60) as client:
            # All at once, so that the least busy instance is now the one, now the other.
            await asyncio.gather(*(talk(client, number) for number in range(6)))

    asyncio.run(main())
    print(f"{cached} of {prompted} prompt tokens of later turns were cached ({cached / prompted:.0%})")
    assert cached / prompted > 0.75, "without affinity it is about two thirds"

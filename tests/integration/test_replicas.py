"""Several instances of one model: as many as there have to be, and more while requests wait."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import uvloop

from harness.deadline import until, wait_until
from harness.fake_llama_server import set_switches
from harness.gateway import NODE, SECRET, GatewayProcess
from harness.nats import NatsServer
from harness.supervisor import Herd, Node, herd_of
from llamaherd_shared.commands import Accepted, GrowModel
from llamaherd_shared.errors import Conflict, NoMemory
from llamaherd_shared.events import decode_event, event_type
from llamaherd_shared.events.instance import InstanceExited
from llamaherd_shared.events.request import requests_of
from llamaherd_shared.streams import REQUESTS
from llamaherd_supervisor.lifecycle import State

NUMBERS = itertools.count(1)


@pytest.fixture
def node(tmp_path: Path, shared_nats_server: NatsServer) -> Iterator[Node]:
    node = Node(tmp_path, shared_nats_server, name=f"replicas{next(NUMBERS)}")
    yield node
    node.clean_up()


def states(herd: Herd) -> dict[int, State]:
    """Of the model's instances, by index."""
    return {index: each.state for (model, index), each in herd.known.instances.items() if model == herd.model}


async def are(herd: Herd, **expected: State) -> None:
    """`i0=State.READY`: wait until this is the state of each."""
    wanted = {int(name[1:]): state for name, state in expected.items()}
    await until(lambda: states(herd) == wanted, within_s=20, what=f"{wanted}, not {states(herd)}")


async def grow(herd: Herd, *, beside: int) -> Accepted:
    subject = herd.bus.subjects.command("supervisor", "grow", node=herd.node.name)
    return await herd.bus.request(subject, GrowModel(model=herd.model, beside=beside), Accepted)


def test_instances_of_a_model_are_loaded_and_unloaded_together(node: Node) -> None:
    async def body() -> None:
        node.add_model("m")
        node.configure({"m": {"replicas": 2, "env": {"WHICH": "${INDEX}"}}})
        async with herd_of(node) as herd:
            node.start()
            await herd.offered()

            await herd.load()
            await are(herd, i0=State.READY, i1=State.READY)
            assert sorted(each.environ()["WHICH"] for each in node.llama_servers("m")) == ["0", "1"]

            await herd.unload()
            await are(herd, i0=State.STOPPED, i1=State.STOPPED)
            assert node.llama_servers("m") == []

    uvloop.run(body())


def test_each_instance_comes_back_by_itself_and_all_are_adopted(node: Node) -> None:
    async def body() -> None:
        node.add_model("m")
        node.configure({"m": {"replicas": 2}})
        async with herd_of(node) as herd:
            node.start()
            await herd.offered()
            await herd.load()
            await are(herd, i0=State.READY, i1=State.READY)
            second = herd.known.instances["m", 1]
            (process,) = [each for each in node.llama_servers("m") if each.pid == second.pid]

            process.kill()
            await until(lambda: herd.known.instances["m", 1].generation == 2, what="the second one is started again")
            await are(herd, i0=State.READY, i1=State.READY)
            assert herd.known.instances["m", 0].generation == 1

            pids = {each.pid for each in node.llama_servers("m")}
            node.kill()
            node.start()
            await herd.serving()
            assert {each.pid for each in node.llama_servers("m")} == pids
            await are(herd, i0=State.READY, i1=State.READY)

    uvloop.run(body())


def test_number_of_instances_follows_the_file(node: Node) -> None:
    async def body() -> None:
        node.add_model("m")
        node.configure({"m": {"replicas": 1}})
        async with herd_of(node) as herd:
            node.start()
            await herd.offered()
            await herd.load()
            await are(herd, i0=State.READY)

            node.configure({"m": {"replicas": 3}})
            await are(herd, i0=State.READY, i1=State.READY, i2=State.READY)

            node.configure({"m": {"replicas": 1}})
            await are(herd, i0=State.READY, i1=State.STOPPED, i2=State.STOPPED)
            assert herd.known.instances["m", 0].generation == 1

    uvloop.run(body())


def test_one_more_is_started_up_to_the_limit_and_goes_when_it_is_idle(node: Node) -> None:
    async def body() -> None:
        path = node.add_model("m")
        node.configure({"m": {"max_replicas": 2, "replica_idle_s": 0.5}})
        set_switches(path, busy_slots=1)
        async with herd_of(node) as herd:
            node.start()
            await herd.offered()
            await herd.load()
            await are(herd, i0=State.READY)

            accepted = await grow(herd, beside=1)
            assert (accepted.model, accepted.index) == ("m", 1)
            await are(herd, i0=State.READY, i1=State.READY)
            with pytest.raises(Conflict, match="as many as there may be"):
                await grow(herd, beside=2)

            set_switches(path, busy_slots=0)
            await are(herd, i0=State.READY, i1=State.STOPPED)
            exited = [fact for fact in herd.facts if isinstance(fact, InstanceExited)]
            assert [(fact.index, fact.cause) for fact in exited] == [(1, "idle")]

    uvloop.run(body())


def test_two_who_ask_for_one_more_at_once_get_one(node: Node) -> None:
    async def body() -> None:
        node.add_model("m")
        node.configure({"m": {"max_replicas": 5}})
        async with herd_of(node) as herd:
            node.start()
            await herd.offered()
            await herd.load()
            await are(herd, i0=State.READY)

            asked = await asyncio.gather(grow(herd, beside=1), grow(herd, beside=1), return_exceptions=True)

            assert {type(each) for each in asked} == {Accepted, Conflict}
            await are(herd, i0=State.READY, i1=State.READY)

    uvloop.run(body())


def test_one_more_takes_only_memory_that_is_free(node: Node) -> None:
    async def body() -> None:
        node.add_model("m", takes_mib=60)
        node.configure({"m": {"max_replicas": 2}})
        async with herd_of(node) as herd:
            node.start(memory_budget="110 MiB")
            await herd.offered()
            await herd.load()
            await are(herd, i0=State.READY)
            await until(
                lambda: any(event_type(fact) == "instance.measured.v1" for fact in herd.facts),
                what="its memory is measured",
            )

            with pytest.raises(NoMemory, match="may not be unloaded for it"):
                await grow(herd, beside=1)
            assert states(herd) == {0: State.READY}

    uvloop.run(body())


@pytest.fixture
def gateway(node: Node, tmp_path: Path) -> Iterator[GatewayProcess]:
    (node.folder / "secret").write_bytes(SECRET)
    models = {"busy": {"max_replicas": 2, "replica_idle_s": 0.5, "slots": 1}}
    node.configure(models)
    gateway = GatewayProcess(tmp_path / "gateway", node.server.url, ask_timeout_s=3, models=models)
    yield gateway
    with contextlib.suppress(Exception):
        gateway.stop()


def test_requests_that_wait_get_one_more_instance_and_it_goes_afterwards(node: Node, gateway: GatewayProcess) -> None:
    node.add_model("busy", delay_token_s=0.25, tokens=12)
    node.start()
    gateway.start()
    wait_until(lambda: "busy" in _known(gateway), what="the gateway knows the model")

    began = time.monotonic()
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: _chat(gateway), range(6)))
    took_s = time.monotonic() - began

    assert [answer.status_code for answer in answers] == [200] * 6, answers[0].text
    assert uvloop.run(_served_by(node, 6)) == {f"{node.name}/busy/0", f"{node.name}/busy/1"}
    assert took_s < 6 * 3, "one slot alone takes three seconds for each"
    wait_until(lambda: len(node.llama_servers("busy")) == 1, within_s=20, what="only one is left")


def _known(gateway: GatewayProcess) -> list[str]:
    return [entry["id"] for entry in httpx.get(f"{gateway.url}/v1/models", timeout=5).json()["data"]]


def _chat(gateway: GatewayProcess) -> httpx.Response:
    body = {"model": "busy", "messages": [{"role": "user", "content": "hello"}]}
    return httpx.post(f"{gateway.url}/v1/chat/completions", json=body, timeout=60)


async def _served_by(node: Node, requests: int) -> set[str]:
    """Names of the instances that answered so many requests."""
    seen: list[str] = []
    async with herd_of(node) as herd, asyncio.timeout(20):
        async for batch in herd.bus.read(REQUESTS, after=0):
            for recorded in batch:
                facts = requests_of(decode_event(recorded.data))
                seen += [fact.instance for fact in facts if fact.node == NODE and fact.route.endswith("completions")]
            if len(seen) >= requests:
                break
    return set(seen)

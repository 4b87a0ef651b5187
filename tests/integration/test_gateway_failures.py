"""What has broken other servers when models come and go, on a gateway and a supervisor; `T` numbers are peers.md's."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvloop

from harness.deadline import until
from harness.fake_llama_server import set_switches
from harness.gateway import SECRET, GatewayProcess
from harness.nats import NatsServer
from harness.supervisor import Herd, Node, herd_of
from llamaherd_supervisor.lifecycle import State

pytestmark = pytest.mark.integration

NAMES = (f"broken-{number}.Q8_0" for number in itertools.count(1))
FAULTS = Path(__file__).parents[1] / "golden" / "llama_server" / "faults"


class World:
    """A node whose models a gateway serves."""

    def __init__(self, node: Node, gateway: GatewayProcess) -> None:
        self.node, self.gateway = node, gateway

    def run(self, scenario: Callable[[Herd, httpx.AsyncClient], Coroutine[Any, Any, None]], model: str) -> None:
        async def main() -> None:
            limits = httpx.Limits(max_connections=None)
            async with (
                herd_of(self.node, model) as herd,
                httpx.AsyncClient(base_url=self.gateway.url, timeout=30, limits=limits) as client,
            ):
                await asyncio.wait_for(scenario(herd, client), 60)

        uvloop.run(main())

    async def add_model(self, herd: Herd, client: httpx.AsyncClient, name: str, **switches: Any) -> None:
        """Returns when it can be asked for."""
        self.node.add_model(name, **switches)
        await herd.offered(name)
        for _ in range(500):
            if (await client.get(f"/v1/models/{name}")).status_code == 200:
                return
            await asyncio.sleep(0.02)
        raise AssertionError(f"the gateway does not see {name}")

    def starts_of(self, model: str) -> int:
        """llama-servers that were started for it."""
        return len((self.node.models_dir / f"{model}.gguf.starts").read_text().split())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    nats = NatsServer(tmp_path_factory.mktemp("nats")).start()
    node = Node(tmp_path_factory.mktemp("node"), nats, name="here.lan")
    (node.folder / "secret").write_bytes(SECRET)
    gateway = GatewayProcess(tmp_path_factory.mktemp("gateway"), nats.url, load_timeout_s=1, ask_timeout_s=3)

    async def start() -> None:
        async with herd_of(node) as herd:
            node.start()
            await herd.serving()

    with contextlib.ExitStack() as stack:
        stack.callback(nats.stop)
        stack.callback(node.clean_up)
        uvloop.run(start())
        gateway.start()
        stack.callback(gateway.stop)
        yield World(node, gateway)


@pytest.fixture
def model() -> str:
    return next(NAMES)


def chat(model: str, **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hello"}], **fields}


def ask(client: httpx.AsyncClient, model: str, **fields: Any) -> "asyncio.Task[httpx.Response]":
    return asyncio.create_task(client.post("/v1/chat/completions", json=chat(model, **fields)))


@contextlib.asynccontextmanager
async def streaming(client: httpx.AsyncClient, model: str) -> AsyncIterator[AsyncIterator[str]]:
    """A stream that has begun: its lines, but the first."""
    async with client.stream("POST", "/v1/chat/completions", json=chat(model, stream=True)) as answer:
        assert answer.status_code == 200
        lines = answer.aiter_lines()
        await anext(lines)
        yield lines


@pytest.mark.parametrize("state", [State.DRAINING, State.STOPPING])
def test_a_request_during_an_unload_is_served_by_a_new_start(world: World, model: str, state: State) -> None:
    """T1: a request during llama-swap's unload wedged the model for ever, while its health said OK."""

    async def scenario(herd: Herd, client: httpx.AsyncClient) -> None:
        busy = {"busy_slots": 1} if state is State.DRAINING else {"ignore_sigterm": True}
        await world.add_model(herd, client, model, **busy)
        assert (await ask(client, model)).status_code == 200
        await herd.unload()
        await herd.state(state)

        asking = [ask(client, model) for _ in range(3)]
        set_switches(world.node.models_dir / f"{model}.gguf")
        assert [answer.status_code for answer in await asyncio.gather(*asking)] == [200] * 3
        assert (await ask(client, model)).status_code == 200
        assert world.starts_of(model) == 2

    world.run(scenario, model)


def test_requests_that_race_unloads_are_all_served_and_one_process_is_left(world: World, model: str) -> None:
    """T2: a start that raced a stop left llama-swap with a model that was neither."""

    async def scenario(herd: Herd, client: httpx.AsyncClient) -> None:
        await world.add_model(herd, client, model)
        assert (await ask(client, model)).status_code == 200
        for pause_s in (0.0, 0.1, 0.3, 0.4):
            unloading = asyncio.create_task(herd.unload())
            await asyncio.sleep(pause_s)
            answers = await asyncio.gather(*[ask(client, model) for _ in range(3)])
            await unloading
            assert [answer.status_code for answer in answers] == [200] * 3, [answer.text for answer in answers]

        await until(lambda: herd.instance().state is State.READY and len(world.node.llama_servers(model)) == 1)

    world.run(scenario, model)


@pytest.mark.parametrize("how", ["a person", "LM Studio", "Ollama"])
def test_an_unload_waits_for_what_is_being_generated(world: World, model: str, how: str) -> None:
    """T3: swaps of llama.cpp's router and LM Studio's unload killed the model in the middle of an answer."""

    async def scenario(herd: Herd, client: httpx.AsyncClient) -> None:
        await world.add_model(herd, client, model, tokens=25, delay_token_s=0.02)
        async with streaming(client, model) as lines:
            if how == "a person":
                await herd.unload()
            elif how == "LM Studio":
                unloaded = await client.post("/api/v1/models/unload", json={"instance_id": model})
                assert unloaded.status_code == 200, unloaded.text
            else:
                unloaded = await client.post("/api/generate", json={"model": model, "keep_alive": 0})
                assert unloaded.json()["done_reason"] == "unload", unloaded.text
            rest = [line async for line in lines if line]

        assert rest[-1] == "data: [DONE]"
        assert len([line for line in rest if '"content"' in line]) == 24
        await herd.state(State.STOPPED)
        exited = herd.history()[-1]
        assert getattr(exited, "signal", None) is None, exited

    world.run(scenario, model)


def test_a_load_that_somebody_waits_for_survives_another_ones_unload(world: World, model: str) -> None:
    """T6: llama.cpp's router chose a loading model as its victim, and killed it by force."""

    async def scenario(herd: Herd, client: httpx.AsyncClient) -> None:
        await world.add_model(herd, client, model, slow_load_s=0.8)
        asking = ask(client, model)
        await herd.state(State.LOADING)
        await herd.unload()

        assert (await asking).status_code == 200
        kinds = herd.kinds()
        assert kinds[-2:] == ["started", "ready"], kinds
        stopped = [fact for fact in herd.history() if type(fact).__name__ == "InstanceExited"]
        assert all(getattr(fact, "signal", None) in (None, "SIGTERM") for fact in stopped), stopped

    world.run(scenario, model)


def test_a_load_slower_than_the_gateways_patience_serves_whoever_comes_back(world: World, model: str) -> None:
    """T12: a load that took longer than llama-swap's health time-out left the model failed for ever."""

    async def scenario(herd: Herd, client: httpx.AsyncClient) -> None:
        await world.add_model(herd, client, model, slow_load_s=2.2)
        late = await ask(client, model)
        assert late.status_code == 503
        assert "no progress" in late.json()["error"]["message"]
        assert int(late.headers["retry-after"]) > 0

        while (answer := await ask(client, model)).status_code == 503:
            pass
        assert answer.status_code == 200, answer.text
        assert world.starts_of(model) == 1, "it was let go on"

    world.run(scenario, model)


def test_a_model_that_was_given_up_is_served_once_it_can_be_loaded(world: World, model: str) -> None:
    """T12: `failed` is no grave."""

    async def scenario(herd: Herd, client: httpx.AsyncClient) -> None:
        await world.add_model(herd, client, model, exit_on_start=1)
        failed = await ask(client, model)
        assert failed.status_code == 503
        await herd.state(State.FAILED)

        set_switches(world.node.models_dir / f"{model}.gguf")
        assert (await ask(client, model)).status_code == 200

    world.run(scenario, model)


def test_a_failed_load_says_why_in_plain_words(world: World, model: str) -> None:
    async def scenario(herd: Herd, client: httpx.AsyncClient) -> None:
        lines = (FAULTS / "bad_argument-number.log").read_text().splitlines()
        await world.add_model(herd, client, model, exit_on_start=1, raw_lines=lines)

        answer = await ask(client, model)

        assert answer.status_code == 503
        message = answer.json()["error"]["message"]
        assert "llama-server refuses --ctx-size (`context_tokens`): its value is no number" in message
        assert "last lines of its log" in message

    world.run(scenario, model)


def test_a_port_that_was_taken_in_between_fails_no_request(world: World, model: str) -> None:
    async def scenario(herd: Herd, client: httpx.AsyncClient) -> None:
        lines = (FAULTS / "port_in_use-ours.log").read_text().splitlines()
        await world.add_model(herd, client, model, exit_on_start=1, only_first_starts=1, raw_lines=lines)

        answer = await ask(client, model)

        assert answer.status_code == 200, answer.text
        assert world.starts_of(model) == 2

    world.run(scenario, model)


def test_two_models_that_push_each_other_out_are_both_served_in_the_end(world: World, model: str) -> None:
    """T5: with room for one, two models of llama.cpp's router unloaded each other without serving anybody.

    Whoever is ready here is unloaded at once, for the other one's sake.
    """

    async def scenario(herd: Herd, client: httpx.AsyncClient) -> None:
        other = next(NAMES)
        for name in (model, other):
            await world.add_model(herd, client, name, tokens=4, delay_token_s=0.05)
        both = itertools.cycle((model, other))

        async def push_out() -> None:
            while True:
                name = next(both)
                if herd.instance(name).state is State.READY:
                    await herd.unload(name)
                await asyncio.sleep(0.05)

        pushing = asyncio.create_task(push_out())
        for _ in range(3):
            asking = [ask(client, name) for name in (model, other) for _ in range(2)]
            answers = await asyncio.gather(*asking)
            assert [answer.status_code for answer in answers] == [200] * 4, [answer.text for answer in answers]
        pushing.cancel()
        assert min(world.starts_of(model), world.starts_of(other)) >= 2, "they did push each other out"

    world.run(scenario, model)


LOOKS = (
    "GET /metrics?model={}",
    "GET /props?model={}",
    "GET /slots?model={}",
    "GET /lora-adapters?model={}",
    "GET /upstream/{}/metrics",
    "GET /upstream/{}/props",
    "GET /upstream/{}/slots",
    "GET /upstream/{}/health",
    "GET /upstream/{}/v1/models",
    "GET /v1/models",
    "GET /v1/models/{}",
    "GET /api/tags",
    "GET /api/ps",
    "GET /api/v0/models",
    "GET /api/v0/models/{}",
    "GET /api/v1/models",
    "POST /api/show",
)
"""What looks at models."""
NEEDS_IT_LOADED = LOOKS[:9]


async def look(client: httpx.AsyncClient, line: str, model: str) -> int:
    """The answer's status."""
    method, path = line.format(model).split()
    body = {"json": {"model": model}} if method == "POST" else {}
    return (await client.request(method, path, **body)).status_code  # type: ignore[arg-type]


def test_looking_never_loads_a_model(world: World, model: str) -> None:
    """T28: whoever scraped llama.cpp's metrics loaded the model."""

    async def scenario(herd: Herd, client: httpx.AsyncClient) -> None:
        await world.add_model(herd, client, model)
        for line in LOOKS:
            assert await look(client, line, model) == (503 if line in NEEDS_IT_LOADED else 200), line
        assert herd.kinds() == []
        assert not (world.node.models_dir / f"{model}.gguf.starts").exists()

    world.run(scenario, model)


def test_looking_keeps_no_model_awake(world: World, model: str) -> None:
    """T28: a dashboard that asked for metrics every few seconds kept llama.cpp's models from going to sleep."""

    async def scenario(herd: Herd, client: httpx.AsyncClient) -> None:
        await world.add_model(herd, client, model)
        kept = await client.post("/api/chat", json=chat(model, stream=False, keep_alive="0.5s"))
        assert kept.status_code == 200, kept.text
        since = asyncio.get_running_loop().time()
        while herd.instance().state is State.READY:
            assert asyncio.get_running_loop().time() - since < 6, "looked at, it stays for ever"
            for line in LOOKS:
                assert await look(client, line, model) in (200, 503), line
        await herd.state(State.STOPPED)
        assert herd.kinds() == ["started", "ready", "draining", "stopping", "exited"]

    world.run(scenario, model)


def test_a_ttl_counts_only_for_the_request_that_loads_the_model(world: World, model: str) -> None:
    """LM Studio's `ttl` is said when a model is loaded by it; later ones change nothing (api-dialects, 6.6)."""

    async def scenario(herd: Herd, client: httpx.AsyncClient) -> None:
        await world.add_model(herd, client, model)
        first = await client.post("/api/v0/chat/completions", json=chat(model, ttl=3600))
        second = await client.post("/api/v0/chat/completions", json=chat(model, ttl=0))
        assert (first.status_code, second.status_code) == (200, 200)
        with pytest.raises(AssertionError):
            await until(lambda: "draining" in herd.kinds(), within_s=1.5)

        await herd.unload()
        await herd.state(State.STOPPED)
        third = await client.post("/api/v0/chat/completions", json=chat(model, ttl=0))
        assert third.status_code == 200
        await herd.state(State.STOPPED, within_s=6)
        assert herd.kinds()[-1] == "exited"

    world.run(scenario, model)

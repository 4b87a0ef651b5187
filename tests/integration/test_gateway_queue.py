"""Requests that wait for a slot, are told how it goes, and go elsewhere when they must."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from harness.deadline import until
from harness.gateway import GatewayProcess, Herd, open_herd
from harness.nats import NatsServer

pytestmark = pytest.mark.integration

Scenario = Callable[[Herd, GatewayProcess], Any]


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path_factory.mktemp("nats")).start()
    yield server
    server.stop()


@pytest.fixture
def run(nats: NatsServer, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., None]]:
    """Runs a scenario with a gateway of its own settings; models are named after the test."""
    started: list[GatewayProcess] = []

    def runner(scenario: Scenario, **settings: Any) -> None:
        gateway = GatewayProcess(tmp_path / "gateway", nats.url, load_timeout_s=5, ask_timeout_s=2, **settings).start()
        started.append(gateway)

        async def main() -> None:
            async with open_herd(nats.url, gateway) as herd:
                await asyncio.wait_for(scenario(herd, gateway), 60)

        asyncio.run(main())

    yield runner
    for gateway in started:
        gateway.stop()


@pytest.fixture
def model(request: pytest.FixtureRequest) -> str:
    return str(request.node.originalname).removeprefix("test_")[:60]


def chat(model: str, content: str = "hello", **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": content}], **fields}


@asynccontextmanager
async def client_of(gateway: GatewayProcess, address: str = "127.0.0.1") -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.AsyncHTTPTransport(local_address=address, limits=httpx.Limits(max_connections=None))
    async with httpx.AsyncClient(base_url=gateway.url, timeout=30, transport=transport) as client:
        yield client


def ask(client: httpx.AsyncClient, body: dict[str, Any]) -> "asyncio.Task[httpx.Response]":
    return asyncio.create_task(client.post("/v1/chat/completions", json=body))


async def seen_by(herd: Herd, model: str, **wanted: int) -> dict[str, Any]:
    async def holds() -> dict[str, Any] | None:
        state = await herd.state(model)
        return state if all(state[name] == value for name, value in wanted.items()) else None

    for _ in range(400):
        if (state := await holds()) is not None:
            return state
        await asyncio.sleep(0.02)
    raise AssertionError(f"{model} is not seen with {wanted}: {await herd.state(model)}")


def test_no_more_requests_reach_an_instance_than_it_has_slots(run: Any, model: str) -> None:
    async def scenario(herd: Herd, gateway: GatewayProcess) -> None:
        await herd.add_ready_model(model, slots=2, tokens=2, delay_first_token_s=0.3)
        async with client_of(gateway) as client:
            asking = [ask(client, chat(model)) for _ in range(6)]
            await seen_by(herd, model, active=2)
            assert all(answer.status_code == 200 for answer in await asyncio.gather(*asking))

        events = await herd.finished(6, model=model)
        assert sorted(event.queue_position for event in events) == [0, 0, 1, 2, 3, 4]
        waited = {event.queue_position: event.queued_ms for event in events}
        assert waited[0] == 0
        assert waited[4] > 400, "two rounds of 0.3 s"

    run(scenario)


def test_a_client_with_many_requests_does_not_keep_another_from_its_first(run: Any, model: str) -> None:
    async def scenario(herd: Herd, gateway: GatewayProcess) -> None:
        await herd.add_ready_model(model, slots=1, tokens=1, delay_first_token_s=0.2)
        async with client_of(gateway) as greedy, client_of(gateway, "127.0.0.2") as modest:
            many = [ask(greedy, chat(model)) for _ in range(8)]
            await seen_by(herd, model, active=1)
            await asyncio.wait_for(ask(modest, chat(model)), 10)
            assert sum(task.done() for task in many) <= 4, "it had to wait for two of the others, not for eight"
            await asyncio.gather(*many)

    run(scenario)


def test_a_full_queue_and_a_long_wait_are_refused_with_a_time_to_come_back(run: Any, model: str) -> None:
    async def scenario(herd: Herd, gateway: GatewayProcess) -> None:
        await herd.add_ready_model(model, slots=1, tokens=1, delay_first_token_s=3)
        async with client_of(gateway) as client:
            first = ask(client, chat(model))
            await seen_by(herd, model, active=1)
            second, third = ask(client, chat(model)), ask(client, chat(model))
            done, _ = await asyncio.wait({second, third}, return_when=asyncio.FIRST_COMPLETED)
            full = done.pop().result()
            late = await (third if second.done() else second)
            for answer, words in ((full, "wait for the model"), (late, "no free slot within 0.5 s")):
                assert answer.status_code == 503
                assert words in answer.json()["error"]["message"]
                assert int(answer.headers["retry-after"]) > 0
            assert (await first).status_code == 200

    run(scenario, queue_limit=1, queue_timeout_s=0.5)


def test_a_client_that_leaves_the_queue_makes_room_and_generates_nothing(run: Any, model: str) -> None:
    """T20 (peers.md): before the first token, nothing listened for the client."""

    async def scenario(herd: Herd, gateway: GatewayProcess) -> None:
        await herd.add_ready_model(model, slots=1, tokens=1, delay_first_token_s=0.5)
        async with client_of(gateway) as client:
            first = ask(client, chat(model))
            await seen_by(herd, model, active=1)
            gone, stays = ask(client, chat(model, "gone")), ask(client, chat(model, "stays"))
            await asyncio.sleep(0.1)
            gone.cancel()
            await asyncio.gather(first, stays)

        events = await herd.finished(3, model=model)
        assert sorted(event.outcome for event in events) == ["cancelled", "ok", "ok"]
        assert (await herd.state(model))["requests"] == 2

    run(scenario)


def test_a_client_that_asks_for_it_is_told_how_the_waiting_goes(run: Any, model: str) -> None:
    async def scenario(herd: Herd, gateway: GatewayProcess) -> None:
        await herd.add_model(model)

        async def load(name: str) -> None:
            port = await herd.spawn(name, slots=1)
            await herd.say_progress(name, 0.45)
            await asyncio.sleep(0.8)
            assert port
            await herd.say_ready(name, slots=1)

        herd.on_load = load
        async with client_of(gateway) as client:
            wanted = {"x-llamaherd-progress": "1"}
            body = chat(model, stream=True)
            told = await client.post("/v1/chat/completions", json=body, headers=wanted)
            plain = await client.post("/v1/chat/completions", json=body)
        comments = [line for line in told.text.splitlines() if line.startswith(":")]
        assert any("45%" in line for line in comments), comments
        assert told.status_code == 200
        assert told.text.endswith("data: [DONE]\n\n")
        without = "\n\n".join(block for block in told.text.split("\n\n") if not block.startswith(":"))
        assert [json.loads(line[6:])["choices"] for line in without.splitlines() if line.startswith("data: {")] == [
            json.loads(line[6:])["choices"] for line in plain.text.splitlines() if line.startswith("data: {")
        ]
        assert ":" not in {line[:1] for line in plain.text.splitlines()}

    run(scenario)


def test_a_stream_of_lines_has_no_place_for_such_comments(run: Any, model: str) -> None:
    """Ollama's clients read every line as JSON."""

    async def scenario(herd: Herd, gateway: GatewayProcess) -> None:
        await herd.add_ready_model(model, slots=1, tokens=1, delay_first_token_s=0.7)
        async with client_of(gateway) as client:
            first = ask(client, chat(model))
            await seen_by(herd, model, active=1)
            headers = {"x-llamaherd-progress": "1"}
            second = await client.post("/api/chat", json=chat(model), headers=headers)
            await first
        assert second.headers["content-type"] == "application/x-ndjson"
        assert [json.loads(line)["model"] for line in second.text.splitlines()] == [model, model]

    run(scenario)


def test_a_place_in_the_queue_is_told_to_who_asks(run: Any, model: str) -> None:
    async def scenario(herd: Herd, gateway: GatewayProcess) -> None:
        await herd.add_ready_model(model, slots=1, tokens=1, delay_first_token_s=0.7)
        async with client_of(gateway) as client:
            first, second = ask(client, chat(model)), None
            await seen_by(herd, model, active=1)
            second = ask(client, chat(model))
            await asyncio.sleep(0.1)
            headers = {"x-llamaherd-progress": "1"}
            third = await client.post("/v1/chat/completions", json=chat(model, stream=True), headers=headers)
            await asyncio.gather(first, second)
        comments = [line for line in third.text.splitlines() if line.startswith(":")]
        assert comments[0] == f": queued for {model}: position 2"
        assert f": queued for {model}: position 1" in comments

    run(scenario)


def test_a_fallback_answers_when_the_model_cannot_be_loaded(run: Any, model: str) -> None:
    async def scenario(herd: Herd, gateway: GatewayProcess) -> None:
        await herd.add_model(model)
        await herd.add_ready_model("the-fallback")

        async def fail(name: str) -> None:
            await herd.say_failed(name, "out of memory", [])

        herd.on_load = fail
        async with client_of(gateway) as client:
            answer = await client.post("/v1/chat/completions", json=chat(model))
        assert answer.status_code == 200, answer.text
        (event,) = await herd.finished(1, model="the-fallback")
        assert event.instance.split("/")[1] == "the-fallback"

    run(scenario, models={model: {"fallback": "the-fallback"}})


def test_rules_aliases_and_patterns_reach_llama_server(run: Any, model: str) -> None:
    async def scenario(herd: Herd, gateway: GatewayProcess) -> None:
        await herd.add_ready_model(model)
        async with client_of(gateway) as client:
            for name in ("gpt-4o", "claude-sonnet-9", "whatever"):
                body = chat(name, temperature=9, seed=1, logit_bias={})
                answer = await client.post("/v1/chat/completions", json=body)
                assert answer.status_code == 200, answer.text
                got = (await herd.state(model))["body"]
                assert (got["temperature"], got["seed"], got["top_k"]) == (1.5, 7, 20)
                assert "logit_bias" not in got
                assert got["messages"] == body["messages"]
        assert len(await herd.finished(3, model=model)) == 3

    rules = {"set": {"seed": 7}, "default": {"top_k": 20}, "strip": ["logit_bias"], "clamp": {"temperature": [0, 1.5]}}
    models = {"rules*": {"rules": rules}, model: {"aliases": ["gpt-4o", "claude-*"]}}
    run(scenario, default_model=model, models=models)


def test_a_load_that_several_wait_for_goes_on_when_one_leaves(run: Any, model: str) -> None:
    """T24 (peers.md): one waiter's cancellation aborted the load for all."""

    async def scenario(herd: Herd, gateway: GatewayProcess) -> None:
        await herd.add_model(model)
        go = asyncio.Event()

        async def load(name: str) -> None:
            await go.wait()
            await herd.start(name)

        herd.on_load = load
        async with client_of(gateway) as client:
            one, other = ask(client, chat(model)), ask(client, chat(model))
            await until(lambda: herd.loads)
            one.cancel()
            await herd.finished(1, model=model)
            go.set()
            assert (await other).status_code == 200
        assert herd.loads == [model]

    run(scenario)


def test_a_load_that_nobody_waits_for_any_more_is_taken_back(run: Any, model: str) -> None:
    async def scenario(herd: Herd, gateway: GatewayProcess) -> None:
        await herd.add_model(model)

        async def load(name: str) -> None:
            await herd.say_progress(name, 0.1)

        herd.on_load = load
        async with client_of(gateway) as client:
            one, other = ask(client, chat(model)), ask(client, chat(model))
            await until(lambda: herd.loads)
            one.cancel()
            await herd.finished(1, model=model)
            assert herd.cancelled_loads == []
            other.cancel()
            await until(lambda: herd.cancelled_loads, what="the second one was the last")
            herd.on_load = herd.start
            assert (await ask(client, chat(model))).status_code == 200
        assert herd.cancelled_loads == [model]

    run(scenario)


def test_an_instance_lost_while_others_queue_is_loaded_again_for_them(run: Any, model: str) -> None:
    async def scenario(herd: Herd, gateway: GatewayProcess) -> None:
        await herd.add_ready_model(model, slots=1, tokens=1, delay_first_token_s=0.4)
        async with client_of(gateway) as client:
            asking = [ask(client, chat(model)) for _ in range(4)]
            await seen_by(herd, model, active=1)
            await herd.kill(model)
            await herd.say_exited(model, restart_at_ns=None)
            answers = await asyncio.gather(*asking)
        assert [answer.status_code for answer in answers] == [200] * 4
        assert herd.loads

    run(scenario)


def test_gzip_bodies_are_accepted_and_unpacked(run: Any, model: str) -> None:
    import gzip

    async def scenario(herd: Herd, gateway: GatewayProcess) -> None:
        await herd.add_ready_model(model)
        async with client_of(gateway) as client:
            packed = gzip.compress(json.dumps(chat(model)).encode())
            headers = {"content-encoding": "gzip"}
            answer = await client.post("/v1/chat/completions", content=packed, headers=headers)
            broken = await client.post("/v1/chat/completions", content=packed[:-12], headers=headers)
        assert answer.status_code == 200, answer.text
        assert broken.status_code == 400
        assert (await herd.state(model))["body"] == chat(model)

    run(scenario)

"""What an API key may use: per minute, in tokens and at once, on one gateway and over several."""

import asyncio
import contextlib
import random
from typing import Any

import httpx
import pytest

from harness.keyed_gateways import CHAT, HOT, MODEL, OTHER, World, active, client_of, said

pytestmark = pytest.mark.integration


async def hammer(client: httpx.AsyncClient, count: int, *, at_once: int = 8) -> list[httpx.Response]:
    """So many cheap requests."""
    left, answers = iter(range(count)), []

    async def work() -> None:
        for _ in left:
            answers.append(await client.post("/tokenize", json={"model": MODEL, "content": "x"}))

    await asyncio.gather(*[work() for _ in range(at_once)])
    return answers


def admitted(answers: list[httpx.Response]) -> int:
    assert {answer.status_code for answer in answers} <= {200, 429}, {answer.text for answer in answers}
    return sum(answer.status_code == 200 for answer in answers)


def test_a_lone_client_gets_its_requests_per_minute_exactly(world: World) -> None:
    async def scenario() -> None:
        made = await world.make_key(requests_per_minute=40)
        async with client_of(world.here, made) as client:
            answers = await hammer(client, 60)
        assert admitted(answers) == 40
        assert all(50 <= int(answer.headers["retry-after"]) <= 60 for answer in answers if answer.status_code == 429)

    world.run(scenario)


def test_two_gateways_together_keep_to_the_requests_per_minute(world: World) -> None:
    async def scenario() -> None:
        limit = 100
        made = await world.make_key(requests_per_minute=limit)
        async with client_of(world.here, made) as here, client_of(world.there, made) as there:
            answers = await asyncio.gather(hammer(here, 90), hammer(there, 90))
        found = [admitted(some) for some in answers]
        print(f"{sum(found)} of {limit} requests a minute were let in by two gateways: {found}")
        assert limit * 0.9 <= sum(found) <= limit * 1.1

    world.run(scenario)


def test_two_gateways_together_keep_to_the_requests_at_once(world: World) -> None:
    async def scenario() -> None:
        await world.herd.add_ready_model("busy-7b", slots=32, tokens=1, delay_first_token_s=2.5)
        made = await world.make_key(concurrency=10)
        async with client_of(world.here, made) as here, client_of(world.there, made) as there:
            ask = [
                client.post("/v1/chat/completions", json=CHAT | {"model": "busy-7b"}) for client in (here, there) * 12
            ]
            answers = await asyncio.gather(*ask)
        print(f"{admitted(answers)} of 10 requests at once were let in by two gateways")
        assert 9 <= admitted(answers) <= 11
        retry = {answer.headers.get("retry-after") for answer in answers if answer.status_code == 429}
        assert retry == {"1"}

    world.run(scenario)


@pytest.mark.parametrize("gateways", [1, 2])
def test_tokens_per_minute_are_those_of_prompts_and_answers(world: World, gateways: int) -> None:
    async def scenario() -> None:
        limit = 1000
        made = await world.make_key(tokens_per_minute=limit)
        used = refused = 0
        async with client_of(world.here, made) as here, client_of(world.there, made) as there:
            clients = (here, there)[:gateways]
            for number in range(60):
                answer = await clients[number % gateways].post("/v1/chat/completions", json=CHAT)
                refused += answer.status_code == 429
                if answer.status_code == 200:
                    used += answer.json()["usage"]["total_tokens"]
                elif refused == gateways:
                    break
        print(f"{used} of {limit} tokens a minute were used over {gateways} gateways")
        assert refused
        assert limit * 0.9 <= used <= limit * 1.1

    world.run(scenario)


def test_a_client_that_leaves_before_the_end_pays_for_what_was_generated(world: World) -> None:
    async def scenario() -> None:
        made = await world.make_key(tokens_per_minute=1000)
        async with client_of(world.here, made) as client:
            for _ in range(60):
                request = client.build_request("POST", "/v1/chat/completions", json=CHAT | {"stream": True})
                answer = await client.send(request, stream=True)
                if answer.status_code == 429:
                    await answer.aclose()
                    return
                await anext(answer.aiter_raw())
                await answer.aclose()
        raise AssertionError("streams that are cut off are free")

    world.herd.switch(MODEL, tokens=20, delay_token_s=0.01)
    try:
        world.run(scenario)
    finally:
        world.herd.switch(MODEL, tokens=20)


def test_over_a_limit_is_a_429_with_retry_after_in_the_dialects_words(world: World) -> None:
    async def scenario() -> None:
        made = await world.make_key(requests_per_minute=1)
        async with client_of(world.here, made) as client:
            assert (await client.post("/tokenize", json={"model": MODEL, "content": "x"})).status_code == 200
            for dialect, path, body in HOT:
                answer = await client.post(path, json=body)
                assert answer.status_code == 429, (path, answer.text)
                assert f"llh_{made.id} may use 1 requests a minute" in said(dialect, answer)
                assert 50 <= int(answer.headers["retry-after"]) <= 60
                assert made.secret not in answer.text

    world.run(scenario)


def test_whatever_becomes_of_a_request_its_place_is_given_back(world: World) -> None:
    """With one request at once allowed, the first that is not given back stops everything after it."""

    async def scenario() -> None:
        model = "lively-3b"
        await world.herd.add_ready_model(model, slots=1, tokens=5)
        await world.herd.add_model("never-loads")
        made = await world.make_key(concurrency=1)
        body = CHAT | {"model": model}
        outcomes = []

        async def ask(client: httpx.AsyncClient, status: int, outcome: str, **fields: Any) -> None:
            answer = await client.post("/v1/chat/completions", json=body | fields)
            assert answer.status_code == status, answer.text
            outcomes.append(outcome)

        async def fail_to_load(name: str) -> None:
            await world.herd.say_failed(name, "out of memory", [])

        async with client_of(world.here, made) as client:
            await ask(client, 200, "ok")
            await ask(client, 400, "error", messages="broken")
            world.herd.switch(model, error_status=500)
            await ask(client, 500, "error")
            world.herd.switch(model, cut_mid_stream=2)
            await ask(client, 200, "error", stream=True)
            world.herd.switch(model, tokens=50, delay_token_s=0.05)
            async with client.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as answer:
                await anext(answer.aiter_raw())
            outcomes.append("cancelled")  # in the middle of the answer
            await active(world.herd, model, 0)
            waiting = asyncio.create_task(client.post("/v1/chat/completions", json=body))
            await active(world.herd, model, 1)
            waiting.cancel()
            outcomes.append("cancelled")  # before its first byte
            await active(world.herd, model, 0)
            world.herd.on_load, quietly = fail_to_load, world.herd.on_load
            await ask(client, 503, "error", model="never-loads")
            world.herd.on_load = quietly
            world.herd.switch(model, tokens=5)
            await ask(client, 200, "ok")
        async with client_of(world.there, made) as client:
            await ask(client, 200, "ok")  # the other gateway has been told
        narrow = await world.make_key(concurrency=1, models=[OTHER])
        async with client_of(world.here, narrow) as client:
            for _ in range(2):
                await ask(client, 403, "refused")

        events = await world.events_of(made, len(outcomes) - 2)
        assert [event.outcome for event in events] == outcomes[:-2]

    world.run(scenario)


def test_clients_that_leave_at_any_moment_hold_no_place(world: World) -> None:
    async def scenario() -> None:
        model, limit, chance = "restless-3b", 4, random.Random(7)
        await world.herd.add_ready_model(model, slots=8, tokens=10, delay_token_s=0.004)
        made = await world.make_key(concurrency=limit)
        body = CHAT | {"model": model}
        async with client_of(world.here, made) as here, client_of(world.there, made) as there:

            async def come_and_go() -> None:
                asking = chance.choice((here, there)).post(
                    "/v1/chat/completions", json=body | {"stream": chance.random() < 0.5}
                )
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(asking, chance.choice((0.005, 0.02, 0.05, 0.1)))

            for _ in range(10):
                await asyncio.gather(*[come_and_go() for _ in range(12)])
            await active(world.herd, model, 0)
            world.herd.switch(model, tokens=1, delay_first_token_s=20)
            staying = [asyncio.create_task(here.post("/v1/chat/completions", json=body)) for _ in range(limit)]
            await active(world.herd, model, limit)
            for task in staying:
                task.cancel()
            await asyncio.gather(*staying, return_exceptions=True)

    world.run(scenario)


# Together.

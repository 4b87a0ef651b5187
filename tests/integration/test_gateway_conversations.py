"""Conversations that gateways keep: shared by all of them, found with the key that began them, gone when deleted."""

import asyncio
import json
import signal
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from harness.gateway import GatewayProcess
from harness.golden import events
from harness.keyed_gateways import MODEL, Made, World, active, client_of
from llamaherd_shared.events import encode_event
from llamaherd_shared.events.turn import TurnKept
from llamaherd_shared.streams import CONVERSATIONS

pytestmark = pytest.mark.integration

ANSWER = " ".join(f"tok{number}" for number in range(20))
"""What the fake llama-server says to everything."""


@pytest.fixture(scope="module")
def forgetful(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway that keeps nothing."""
    process = GatewayProcess(tmp_path_factory.mktemp("forgetful"), world.nats.url, conversations="off").start()
    yield process
    process.stop()


async def respond(client: httpx.AsyncClient, said: str = "Hello", **fields: Any) -> dict[str, Any]:
    answer = await client.post("/v1/responses", json={"model": MODEL, "input": said, **fields})
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    return content


async def chat(client: httpx.AsyncClient, said: str = "Hello", **fields: Any) -> dict[str, Any]:
    answer = await client.post("/api/v1/chat", json={"model": MODEL, "input": said, **fields})
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    return content


async def refused(client: httpx.AsyncClient, previous: str) -> tuple[int, dict[str, Any]]:
    """Status and error of a request that goes on from there."""
    asked = {"model": MODEL, "input": "And now?", "previous_response_id": previous}
    answer = await client.post("/v1/responses", json=asked)
    error: dict[str, Any] = answer.json()["error"]
    return answer.status_code, error


async def asked_of(world: World, model: str = MODEL) -> list[Any]:
    """Messages of the last request that reached llama-server."""
    messages: list[Any] = (await world.herd.state(model))["body"]["messages"]
    return messages


def talk(*said: str) -> list[dict[str, str]]:
    """These questions, each but the last one answered."""
    messages = [{"role": "user", "content": said[0]}]
    for text in said[1:]:
        messages += [{"role": "assistant", "content": ANSWER}, {"role": "user", "content": text}]
    return messages


async def status_of(client: httpx.AsyncClient, response: str) -> int:
    return (await client.get(f"/v1/responses/{response}")).status_code


def test_a_conversation_goes_on_at_another_gateway(world: World) -> None:
    async def scenario() -> None:
        made = await world.make_key()
        async with client_of(world.here, made) as here, client_of(world.there, made) as there:
            first = await respond(here, "one")
            second = await respond(there, "two", previous_response_id=first["id"])
            third = await respond(here, "three", previous_response_id=second["id"])
            assert await asked_of(world) == talk("one", "two", "three")

            assert [answer["store"] for answer in (first, second, third)] == [True, True, True]
            assert third["previous_response_id"] == second["id"]
            shown = (await there.get(f"/v1/responses/{third['id']}")).json()
            assert shown == third
            items = (await there.get(f"/v1/responses/{third['id']}/input_items?order=asc")).json()["data"]
            assert [item["content"][0]["text"] for item in items] == ["one", ANSWER, "two", ANSWER, "three"]

    world.run(scenario)


def test_a_conversation_may_branch(world: World) -> None:
    async def scenario() -> None:
        async with client_of(world.open) as client:
            first = await respond(client, "one")
            for branch in ("left", "right"):
                await respond(client, branch, previous_response_id=first["id"])
                assert await asked_of(world) == talk("one", branch)

    world.run(scenario)


def test_a_stream_can_be_gone_on_from_as_soon_as_it_ends(world: World) -> None:
    async def scenario() -> None:
        async with client_of(world.open) as client:
            asked = {"model": MODEL, "input": "one", "stream": True}
            told = events((await client.post("/v1/responses", json=asked)).text.encode())
            last = told[-1][1]["response"]
            assert (told[0][1]["response"]["id"], last["store"]) == (last["id"], True)
            await respond(client, "two", previous_response_id=last["id"])
            assert await asked_of(world) == talk("one", "two")

            told = events((await client.post("/api/v1/chat", json=asked)).text.encode())
            await chat(client, "two", previous_response_id=told[-1][1]["result"]["response_id"])
            assert await asked_of(world) == talk("one", "two")

    world.run(scenario)


def test_lm_studios_chats_go_on_with_their_system_prompt(world: World) -> None:
    async def scenario() -> None:
        made = await world.make_key()
        async with client_of(world.here, made) as here, client_of(world.there, made) as there:
            first = await chat(here, "one", system_prompt="Be brief.")
            second = await chat(there, "two", previous_response_id=first["response_id"])
            unkept = await chat(here, "three", previous_response_id=second["response_id"], store=False)

            assert await asked_of(world) == [{"role": "system", "content": "Be brief."}, *talk("one", "two", "three")]
            assert "response_id" not in unkept
            answer = await here.post("/api/v1/chat", json={"model": MODEL, "input": "x", "previous_response_id": "r"})
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (400, "previous_response_not_found")
            assert error["message"] == "Previous response with id 'r' not found."

    world.run(scenario)


def test_another_key_finds_nothing(world: World) -> None:
    async def scenario() -> None:
        mine, other = await world.make_key(), await world.make_key()
        async with (
            client_of(world.here, mine) as client,
            client_of(world.there, other) as stranger,
            client_of(world.open) as nobody,
        ):
            kept = (await respond(client))["id"]
            for somebody in (stranger, nobody):
                status, error = await refused(somebody, kept)
                assert (status, error["code"]) == (400, "previous_response_not_found")
                assert error["message"] == f"Previous response with id '{kept}' not found."
                for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/input_items"), ("POST", "/cancel")):
                    answer = await somebody.request(method, f"/v1/responses/{kept}{path}")
                    assert answer.status_code == 404
                    assert answer.json()["error"]["message"] == f"Response with id '{kept}' not found."
            assert await status_of(client, kept) == 200

    world.run(scenario)


def test_without_a_key_nothing_is_shown_where_keys_are_asked_for(world: World) -> None:
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/input_items"), ("POST", "/cancel")):
        assert httpx.request(method, f"{world.here.url}/v1/responses/resp_1{path}", verify=False).status_code == 401


def test_what_was_deleted_is_gone_and_so_is_the_way_past_it(world: World) -> None:
    async def scenario() -> None:
        made = await world.make_key()
        async with client_of(world.here, made) as here, client_of(world.there, made) as there:
            first = (await respond(here, "one"))["id"]
            second = (await respond(here, "two", previous_response_id=first))["id"]

            deleted = await there.delete(f"/v1/responses/{first}")

            assert deleted.json() == {"id": first, "object": "response", "deleted": True}
            assert await status_of(here, first) == 404
            assert (await here.delete(f"/v1/responses/{first}")).status_code == 404
            # The one behind it is still there, and says which one is missing.
            assert await status_of(here, second) == 200
            status, error = await refused(here, second)
            assert (status, error["message"]) == (400, f"Previous response with id '{first}' not found.")
            assert (await here.get(f"/v1/responses/{second}/input_items")).status_code == 404

    world.run(scenario)


def test_what_is_not_to_be_stored_is_not(world: World) -> None:
    async def scenario() -> None:
        async with client_of(world.open) as client:
            answer = await respond(client, store=False)
            assert answer["store"] is False
            assert await status_of(client, answer["id"]) == 404
            status, error = await refused(client, answer["id"])
            assert (status, error["code"], error["param"]) == (
                400,
                "previous_response_not_found",
                "previous_response_id",
            )

    world.run(scenario)


def test_a_response_cannot_be_cancelled(world: World) -> None:
    async def scenario() -> None:
        async with client_of(world.open) as client:
            answer = await client.post(f"/v1/responses/{(await respond(client))['id']}/cancel")
            error = answer.json()["error"]
            assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
            assert error["message"] == "Cannot cancel a synchronous response."

    world.run(scenario)


def test_a_gateway_that_keeps_nothing_says_so(world: World, forgetful: GatewayProcess) -> None:
    async def scenario() -> None:
        async with client_of(forgetful) as client, client_of(world.open) as other:
            answer = await respond(client)
            assert answer["store"] is False
            assert await status_of(other, answer["id"]) == 404
            status, error = await refused(client, answer["id"])
            assert (status, error["code"]) == (400, "unsupported_parameter")
            assert "gateway.conversations" in error["message"]

            assert "response_id" not in await chat(client)
            asked = {"model": MODEL, "input": "x", "previous_response_id": answer["id"]}
            told = await client.post("/api/v1/chat", json=asked)
            assert (told.status_code, told.json()["error"]["type"]) == (501, "not_implemented")

    world.run(scenario)


def test_what_is_too_large_for_the_bus_is_answered_and_not_kept(world: World) -> None:
    async def scenario() -> None:
        async with client_of(world.open) as client:
            answer = await respond(client, "x" * 2**20)
            assert (answer["store"], answer["status"]) == (False, "completed")
            assert await status_of(client, answer["id"]) == 404
            log = world.open.log.read_text()
            assert answer["id"] in log
            assert "max_payload" in log

            asked = {"model": MODEL, "input": "x" * 2**20, "stream": True}
            told = events((await client.post("/v1/responses", json=asked)).text.encode())
            assert told[-1][0] == "response.completed"
            assert told[-1][1]["response"]["store"] is False

    world.run(scenario)


def test_a_conversation_that_leads_back_to_itself_ends_with_a_refusal(world: World) -> None:
    async def scenario() -> None:
        bus, response = world.herd.bus, "resp_round"
        turn = TurnKept(
            response=response, at_ns=1, asked_ns=1, model=MODEL, previous=response, input=[], output=[], usage={}
        )
        await bus.publish(bus.subjects.conversation("", response), encode_event(turn), msg_id=response)
        async with client_of(world.open) as client:
            status, error = await refused(client, response)
            assert (status, error["code"]) == (400, "conversation_too_long")

    world.run(scenario)


@pytest.mark.parametrize("previous", ["resp_none", "*", ">", "a.b", "ü \n", "x" * 100_000])
def test_any_text_may_stand_where_an_id_should(world: World, previous: str) -> None:
    async def scenario() -> None:
        async with client_of(world.open) as client:
            await respond(client)
            status, error = await refused(client, previous)
            assert (status, error["code"]) == (400, "previous_response_not_found")
            assert len(error["message"]) < 300

    world.run(scenario)


def test_a_client_that_leaves_leaves_nothing_behind(world: World) -> None:
    async def scenario() -> None:
        model = "leaver-1b"
        await world.herd.add_ready_model(model, delay_token_s=0.05, tokens=1000)
        async with client_of(world.open) as client:
            asked = {"model": model, "input": "one", "stream": True}
            async with client.stream("POST", "/v1/responses", json=asked) as answer:
                begun = await anext(answer.aiter_lines())
                assert begun == "event: response.created"
                response = f"resp_{answer.headers['x-request-id']}"
            await active(world.herd, model, 0)
            assert await status_of(client, response) == 404

    world.run(scenario)


def test_a_stream_that_goes_wrong_is_not_kept(world: World) -> None:
    async def scenario() -> None:
        model = "broken-1b"
        await world.herd.add_ready_model(model, error_mid_stream=3)
        async with client_of(world.open) as client:
            asked = {"model": model, "input": "one", "stream": True}
            told = events((await client.post("/v1/responses", json=asked)).text.encode())
            assert told[-1][0] == "response.failed"
            assert await status_of(client, told[-1][1]["response"]["id"]) == 404

    world.run(scenario)


def test_a_conversation_goes_back_to_the_instance_that_has_it_cached(world: World) -> None:
    async def scenario() -> None:
        model = "twins-1b"
        await world.herd.add_ready_model(model, delay_token_s=0.05, tokens=1000)
        await world.herd.start(model, index=1)
        async with client_of(world.open) as client:
            long = "tell me a story " * 50
            # While the first instance is busy, the second one is chosen; later the first one would be again.
            busy = asyncio.create_task(client.post("/v1/completions", json={"model": model, "prompt": "x"}))
            await active(world.herd, model, 1)
            world.herd.switch(model)
            asked = {"model": model, "input": long}
            first = (await client.post("/v1/responses", json=asked)).json()
            busy.cancel()
            await active(world.herd, model, 0)

            asked = {"model": model, "input": "go on", "previous_response_id": first["id"]}
            await client.post("/v1/responses", json=asked)

            assert (await world.herd.state(model, index=1))["requests"] == 2
            assert (await world.herd.state(model))["requests"] == 1

    world.run(scenario)


def test_what_is_kept_is_one_message_that_ends_by_itself(world: World) -> None:
    async def scenario() -> None:
        made = await world.make_key()
        async with client_of(world.here, made) as client:
            response = (await respond(client, "a secret"))["id"]
        bus = world.herd.bus
        kept = await bus.newest(CONVERSATIONS, bus.subjects.conversation(made.id, response), timeout_s=5)
        assert kept is not None
        assert (kept.headers or {})["Nats-TTL"] == str(30 * 86_400)
        assert json.loads(kept.data)["input"][0]["content"] == "a secret"

    world.run(scenario)


def test_conversations_survive_the_death_of_nats_server(world: World) -> None:
    async def before(made: Made) -> str:
        async with client_of(world.here, made) as client:
            return str((await respond(client, "one"))["id"])

    async def scenario() -> None:
        made = await world.make_key()
        response = await before(made)
        await asyncio.to_thread(world.nats.kill)
        await asyncio.to_thread(world.nats.start)
        async with client_of(world.there, made) as client:
            await respond(client, "two", previous_response_id=response)
            assert await asked_of(world) == talk("one", "two")

    world.run(scenario)


def test_without_the_bus_answers_are_given_and_not_kept(world: World) -> None:
    async def scenario() -> None:
        async with client_of(world.open) as client:
            kept = (await respond(client))["id"]
            await asyncio.to_thread(world.nats.kill)
            try:
                # Until the gateway has seen that the bus is gone, it waits for it in vain.
                began = time.monotonic()
                answer = await respond(client)
                assert answer["store"] is False
                assert time.monotonic() - began < 5
                status, error = await refused(client, kept)
                assert (status, error["code"]) == (503, "unavailable")
            finally:
                await asyncio.to_thread(world.nats.start)
            assert (await respond(client, previous_response_id=kept))["store"] is True

    world.run(scenario)


def test_what_the_bus_takes_too_late_is_taken_back(world: World) -> None:
    async def scenario() -> None:
        bus = world.herd.bus
        before = (await bus.stream_head(CONVERSATIONS)).last
        async with client_of(world.open) as client:
            assert world.nats.process is not None
            world.nats.process.send_signal(signal.SIGSTOP)
            try:
                began = time.monotonic()
                answer = await respond(client)
                assert answer["store"] is False
                assert time.monotonic() - began < 5
            finally:
                world.nats.process.send_signal(signal.SIGCONT)

        deadline = time.monotonic() + 10
        subject = bus.subjects.conversation("", answer["id"])
        while (await bus.stream_head(CONVERSATIONS)).last == before or await bus.newest(
            CONVERSATIONS, subject, timeout_s=5
        ):
            assert time.monotonic() < deadline, "the answer is still there"
            await asyncio.sleep(0.02)

    world.run(scenario)

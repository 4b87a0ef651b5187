"""The gateway's relay against a misbehaving llama-server: what clients get, and one event per request."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from typing import Any

import httpx
import pytest

from harness.deadline import until
from harness.gateway import GatewayProcess, Herd, open_herd, run_in_herd, transport_of
from harness.nats import NatsServer

pytestmark = pytest.mark.integration

_names = (f"model-{number}.v1" for number in itertools.count(1))


@pytest.fixture(scope="module")
def nats_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = NatsServer(tmp_path_factory.mktemp("nats")).start()
    yield server.url
    server.stop()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, nats_url: str) -> Iterator[GatewayProcess]:
    process = GatewayProcess(
        tmp_path_factory.mktemp("gateway"), nats_url, max_body_bytes=2**20, load_timeout_s=3, ask_timeout_s=2
    ).start()
    yield process
    process.stop()


@pytest.fixture
def model() -> str:
    return next(_names)


@pytest.fixture
def run(nats_url: str, gateway: GatewayProcess) -> Callable[[Callable[[Herd], Awaitable[None]]], None]:
    return partial(run_in_herd, nats_url, gateway)


def chat(model: str, **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hello there"}], **fields}


def request_bytes(path: str, body: Any, *headers: str, method: str = "POST") -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(content)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + content


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    status = int(head[0].split()[1])
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            await reader.readline()
        await reader.readline()
    else:
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    return status, headers, body


async def connect(gateway: GatewayProcess) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", gateway.port)


async def stream_lines(answer: httpx.Response) -> AsyncIterator[str]:
    async for line in answer.aiter_lines():
        if line.startswith("data: "):
            yield line[6:]


def test_a_plain_answer_passes_through_and_is_recorded(gateway: GatewayProcess, run: Any, model: str) -> None:
    async def scenario(herd: Herd) -> None:
        await herd.add_ready_model(model, tokens=5)
        trace = "0af7651916cd43dd8448eb211c80319c"
        headers = {
            "Authorization": "Bearer the client's own",
            "X-Conversation-Id": "7",
            "traceparent": f"00-{trace}-b7ad6b7169203331-01",
            "Origin": "http://localhost:3000",
        }
        async with httpx.AsyncClient(base_url=gateway.url) as client:
            answer = await client.post("/v1/chat/completions", json=chat(model), headers=headers)

        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["message"]["content"] == "tok0 tok1 tok2 tok3 tok4"
        assert trace in answer.headers["traceparent"]
        assert answer.headers.get_list("access-control-allow-origin") == ["http://localhost:3000"], "ours alone"
        seen = (await herd.state(model))["headers"]
        assert "x-conversation-id" not in seen
        assert "the client's own" not in seen["authorization"]
        assert trace in seen["traceparent"]
        (event,) = await herd.finished(1, model=model)
        assert event.request_id == answer.headers["x-request-id"]
        assert (event.status, event.outcome, event.error) == (200, "ok", None)
        assert (event.completion_tokens, event.route) == (5, "/v1/chat/completions")
        assert event.prompt_tokens is not None
        assert event.prompt_tokens > 0
        assert event.first_token_ms is not None
        assert event.total_ms >= event.first_token_ms
        assert event.bytes_out == len(answer.content)
        assert event.trace_id == trace
        assert event.instance.endswith(f"/{model}/0")

    run(scenario)


def test_a_stream_passes_through_as_it_comes(gateway: GatewayProcess, run: Any, model: str) -> None:
    async def scenario(herd: Herd) -> None:
        await herd.add_ready_model(model, tokens=6, delay_token_s=0.05)
        pieces = 0
        async with (
            httpx.AsyncClient(base_url=gateway.url) as client,
            client.stream("POST", "/v1/chat/completions", json=chat(model, stream=True)) as answer,
        ):
            assert answer.headers["content-type"] == "text/event-stream"
            assert answer.headers["x-accel-buffering"] == "no"
            content = b""
            async for piece in answer.aiter_raw():
                content += piece
                pieces += 1

        assert content.endswith(b"data: [DONE]\n\n")
        assert content.count(b"data: ") == 8
        assert pieces >= 5
        (event,) = await herd.finished(1, model=model)
        assert event.streamed
        assert event.completion_tokens == 6
        assert event.prompt_tokens
        assert event.first_token_ms is not None
        assert event.first_token_ms < event.total_ms - 200

    run(scenario)


def test_many_streams_at_once_none_fails(gateway: GatewayProcess, run: Any, model: str) -> None:
    """llama-server closes after each stream although it announced keep-alive."""

    async def scenario(herd: Herd) -> None:
        await herd.add_ready_model(model, slots=8, tokens=4)

        async def work(client: httpx.AsyncClient) -> None:
            for number in range(20):
                answer = await client.post("/v1/chat/completions", json=chat(model, stream=number % 2 == 0))
                assert answer.status_code == 200, answer.text
                assert number % 2 or answer.text.endswith("data: [DONE]\n\n")

        async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as client:
            await asyncio.gather(*(work(client) for _ in range(8)))
        events = await herd.finished(160, model=model)
        assert {event.outcome for event in events} == {"ok"}
        assert len({event.request_id for event in events}) == 160

    run(scenario)


def test_connections_are_reused_but_never_past_the_maximum(gateway: GatewayProcess, run: Any, model: str) -> None:
    async def scenario(herd: Herd) -> None:
        await herd.add_ready_model(model)
        before = (await herd.state(model))["connections"]
        async with httpx.AsyncClient(base_url=gateway.url) as client:
            for _ in range(250):
                answer = await client.post("/tokenize", json={"model": model, "content": "hi"})
                assert answer.json() == {"tokens": [104, 105]}
        # Looking costs one connection of its own.
        # And a pause of seconds, on a busy machine, another one.
        assert 3 <= (await herd.state(model))["connections"] - before - 1 <= 6

    run(scenario)


def test_a_server_that_closes_kept_connections_early_fails_no_request(
    gateway: GatewayProcess, run: Any, model: str
) -> None:
    async def scenario(herd: Herd) -> None:
        await herd.add_ready_model(model, close_keepalive_early=True)
        async with httpx.AsyncClient(base_url=gateway.url) as client:
            for _ in range(60):
                answer = await client.post("/tokenize", json={"model": model, "content": "hi"})
                assert answer.status_code == 200, answer.text
        await herd.finished(60, model=model)

    run(scenario)


@pytest.mark.parametrize("when", ["before the first token", "in the middle"])
def test_a_client_that_leaves_stops_the_generation(gateway: GatewayProcess, run: Any, model: str, when: str) -> None:
    """T19, T20 (peers.md); for every route in test_gateway_departures.py."""

    async def scenario(herd: Herd) -> None:
        first = 30.0 if when == "before the first token" else 0.0
        await herd.add_ready_model(model, tokens=500, delay_first_token_s=first, delay_token_s=0.05)
        reader, writer = await connect(gateway)
        writer.write(request_bytes("/v1/chat/completions", chat(model, stream=True)))
        if first:
            await until_state(herd, model, active=1)
        else:
            await reader.readuntil(b"tok1")
        writer.close()

        await until_state(herd, model, cancelled=1, active=0)
        (event,) = await herd.finished(1, model=model)
        assert event.outcome == "cancelled"
        assert event.status == (499 if first else 200)

    run(scenario)


async def until_state(herd: Herd, model: str, **wanted: int) -> None:
    for _ in range(200):
        state = await herd.state(model)
        if all(state[name] == value for name, value in wanted.items()):
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"not seen: {wanted}, but {state}")


def test_a_model_that_is_not_loaded_is_loaded_while_the_request_waits(
    gateway: GatewayProcess, run: Any, model: str
) -> None:
    async def scenario(herd: Herd) -> None:
        await herd.add_model(model, slow_load_s=0.5)
        async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as client:
            answers = await asyncio.gather(
                client.post("/v1/chat/completions", json=chat(model)),
                client.post("/v1/chat/completions", json=chat(model, stream=True)),
            )

        assert [answer.status_code for answer in answers] == [200, 200], [answer.text for answer in answers]
        assert herd.loads == [model], "two waiters, one load"
        events = await herd.finished(2, model=model)
        assert all(event.waited_ms > 400 for event in events)
        assert all(event.total_ms > event.waited_ms for event in events)

    run(scenario)


def test_a_client_that_leaves_during_a_load_is_recorded_and_the_load_goes_on(
    gateway: GatewayProcess, run: Any, model: str
) -> None:
    """T20 (peers.md): before the first token, Starlette listens for nobody's leaving."""

    async def scenario(herd: Herd) -> None:
        await herd.add_model(model, slow_load_s=0.5)
        _, writer = await connect(gateway)
        writer.write(request_bytes("/v1/chat/completions", chat(model)))
        await until(lambda: herd.loads == [model])
        writer.close()
        (event,) = await herd.finished(1, model=model)
        assert (event.outcome, event.status) == ("cancelled", 499)
        async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as client:
            assert (await client.post("/v1/chat/completions", json=chat(model))).status_code == 200

    run(scenario)


def test_an_instance_gone_before_the_request_that_loaded_it_came_to_it_is_loaded_again(
    gateway: GatewayProcess, run: Any, model: str
) -> None:
    """T4: llama.cpp's router evicted a model between its load and the request that had caused it: a 500."""

    async def scenario(herd: Herd) -> None:
        async def load(name: str) -> None:
            if len(herd.loads) > 2:
                await herd.start(name)
                return
            await herd.spawn(name)
            await herd.kill(name)  # before anybody hears that it is ready, or the request might come to it
            await herd.say_ready(name)
            await herd.say_exited(name, cause="unload", signal=None, exit_code=0)

        await herd.add_model(model)
        herd.on_load = load
        async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as client:
            answer = await client.post("/v1/chat/completions", json=chat(model))
        assert answer.status_code == 200, answer.text
        assert herd.loads == [model] * 3

    run(scenario)


def test_a_load_that_fails_tells_the_last_lines(gateway: GatewayProcess, run: Any, model: str) -> None:
    async def scenario(herd: Herd) -> None:
        async def fail(name: str) -> None:
            await herd.spawn(name)
            await herd.kill(name)
            await herd.say_exited(
                name, signal=None, exit_code=1, last_lines=["llama_model_load: bad magic", "exiting"], restart_at_ns=1
            )

        await herd.add_model(model)
        herd.on_load = fail
        async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as client:
            answer = await client.post("/v1/chat/completions", json=chat(model))

        assert answer.status_code == 503
        error = answer.json()["error"]
        assert "bad magic" in error["message"]
        assert error["type"] == "server_error"
        assert int(answer.headers["retry-after"]) > 0
        (event,) = await herd.finished(1, model=model)
        assert (event.outcome, event.status) == ("error", 503)
        assert event.error
        assert "bad magic" in event.error

    run(scenario)


def test_a_load_that_ended_in_a_way_nobody_saw_is_waited_for(gateway: GatewayProcess, run: Any, model: str) -> None:
    """The supervisor was killed meanwhile, and its successor cannot know the exit code."""

    async def scenario(herd: Herd) -> None:
        async def end_once(name: str) -> None:
            await herd.spawn(name)
            await herd.kill(name)
            await herd.say_exited(name, signal=None, exit_code=None, restart_at_ns=1)
            await herd.start(name)

        await herd.add_model(model)
        herd.on_load = end_once
        async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as client:
            answer = await client.post("/v1/chat/completions", json=chat(model))

        assert answer.status_code == 200, answer.text

    run(scenario)


def test_a_supervisor_that_gave_up_is_quoted(gateway: GatewayProcess, run: Any, model: str) -> None:
    async def scenario(herd: Herd) -> None:
        await herd.add_model(model)
        herd.on_load = lambda name: herd.say_failed(name, "crashed 5 times in a row", ["out of memory"])
        async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as client:
            answer = await client.post("/v1/chat/completions", json=chat(model))
        assert answer.status_code == 503
        assert "crashed 5 times in a row" in answer.text
        assert "out of memory" in answer.text

    run(scenario)


def test_a_load_without_progress_is_given_up(gateway: GatewayProcess, run: Any, model: str) -> None:
    async def scenario(herd: Herd) -> None:
        async def dawdle(name: str) -> None:
            await herd.spawn(name)
            for ratio in (0.1, 0.2, 0.3, 0.4):
                await asyncio.sleep(1)
                await herd.say_progress(name, ratio)

        await herd.add_model(model, slow_load_s=60)
        herd.on_load = dawdle
        async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as client:
            answer = await client.post("/v1/chat/completions", json=chat(model))

        assert answer.status_code == 503
        assert "no progress" in answer.json()["error"]["message"]
        assert "weights, 40%" in answer.text
        (event,) = await herd.finished(1, model=model)
        assert event.waited_ms > 6500, "as long as there was progress, it waited"

    run(scenario)


def test_nobody_to_load_is_an_error_within_the_deadline(gateway: GatewayProcess, nats_url: str, model: str) -> None:
    async def main() -> None:
        async with open_herd(nats_url, gateway) as herd:
            await herd.add_model(model)
        async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as client:
            answer = await client.post("/v1/chat/completions", json=chat(model))
        assert answer.status_code == 503
        assert "not running" in answer.text
        assert "retry-after" in answer.headers

    asyncio.run(main())


def test_an_instance_that_dies_before_its_answer_is_replaced_and_asked_again(
    gateway: GatewayProcess, run: Any, model: str
) -> None:
    async def scenario(herd: Herd) -> None:
        async def leave_it_to_the_restart(_: str) -> None:
            return None

        await herd.add_ready_model(model, delay_first_token_s=30)
        herd.on_load = leave_it_to_the_restart
        async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as client:
            asking = asyncio.create_task(client.post("/v1/chat/completions", json=chat(model)))
            await until_state(herd, model, active=1)
            herd.switch(model, delay_first_token_s=0)
            await herd.kill(model)
            await herd.say_exited(model, restart_at_ns=1)
            await herd.start(model)
            answer = await asking
        assert answer.status_code == 200, answer.text
        (event,) = await herd.finished(1, model=model)
        assert event.outcome == "ok"

    run(scenario)


def test_an_instance_that_dies_twice_is_an_error(gateway: GatewayProcess, run: Any, model: str) -> None:
    async def scenario(herd: Herd) -> None:
        await herd.add_ready_model(model, die_on_request=True)

        async def restart() -> None:
            await herd.processes[model].wait()
            await herd.say_exited(model, restart_at_ns=1)
            await herd.start(model)

        restarting = asyncio.create_task(restart())
        async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as client:
            answer = await client.post("/v1/chat/completions", json=chat(model))
        await restarting
        assert answer.status_code == 502
        assert "twice" in answer.json()["error"]["message"]
        await herd.finished(1, model=model)

    run(scenario)


def test_a_connection_closed_without_an_answer_by_a_living_instance_is_an_error(
    gateway: GatewayProcess, run: Any, model: str
) -> None:
    async def scenario(herd: Herd) -> None:
        await herd.add_ready_model(model, die_on_request=True)
        async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as client:
            answer = await client.post("/v1/chat/completions", json=chat(model))
        # Nobody told the gateway that it has exited.
        assert answer.status_code == 502
        assert "without an answer" in answer.text

    run(scenario)


def test_an_instance_that_dies_in_the_middle_ends_the_stream_with_an_error(
    gateway: GatewayProcess, run: Any, model: str
) -> None:
    async def scenario(herd: Herd) -> None:
        await herd.add_ready_model(model, tokens=9, die_mid_stream=3, delay_token_s=0.02)
        async with (
            httpx.AsyncClient(base_url=gateway.url) as client,
            client.stream("POST", "/v1/chat/completions", json=chat(model, stream=True)) as answer,
        ):
            events = [json.loads(line) async for line in stream_lines(answer)]
        assert answer.status_code == 200
        assert len(events) == 4
        assert "middle of its answer" in events[-1]["error"]["message"]
        (event,) = await herd.finished(1, model=model)
        assert (event.outcome, event.status) == ("error", 200)

    run(scenario)


def test_an_error_of_llama_server_is_translated(gateway: GatewayProcess, run: Any, model: str) -> None:
    async def scenario(herd: Herd) -> None:
        await herd.add_ready_model(model, error_status=500)
        async with httpx.AsyncClient(base_url=gateway.url) as client:
            answer = await client.post("/v1/chat/completions", json=chat(model, stream=True))
        assert answer.status_code == 500
        assert answer.json() == {
            "error": {"message": "told to fail", "type": "server_error", "param": None, "code": None}
        }
        (event,) = await herd.finished(1, model=model)
        assert (event.outcome, event.error) == ("error", "told to fail")

    run(scenario)


def test_unknown_models_are_answered_with_the_known_ones(gateway: GatewayProcess, run: Any, model: str) -> None:
    async def scenario(herd: Herd) -> None:
        await herd.add_ready_model(model)
        wrong = model[:-1]
        async with httpx.AsyncClient(base_url=gateway.url) as client:
            answer = await client.post("/v1/chat/completions", json=chat(wrong))
            listed = (await client.get("/v1/models")).json()["data"]
            one = await client.get(f"/v1/models/{model}")
            none = await client.get(f"/v1/models/{wrong}")

        assert answer.status_code == 404
        error = answer.json()["error"]
        assert error["code"] == "model_not_found"
        assert f"did you mean '{model}'?" in error["message"]
        (event,) = await herd.finished(1, model=wrong)
        assert (event.status, event.outcome) == (404, "error")
        assert model in [entry["id"] for entry in listed]
        assert one.json()["id"] == model
        assert none.status_code == 404

    run(scenario)


def test_bad_requests_say_what_is_wrong_and_where(gateway: GatewayProcess) -> None:
    with httpx.Client(base_url=gateway.url) as client:
        broken = client.post("/v1/chat/completions", content=b'{"model": "m",\n  "messages": [oops]}')
        nameless = client.post("/v1/chat/completions", json={"messages": []})
        array = client.post("/v1/chat/completions", content=b"[]")
        large = client.post("/v1/chat/completions", content=b" " * (2**20 + 1))
        packed = client.post("/v1/chat/completions", content=b"x", headers={"content-encoding": "zstd"})
        got = client.get("/v1/chat/completions")
        lost = client.post("/v1/chat/completion", json={})

    assert broken.status_code == 400
    assert "line 2 column 16 (byte 30)" in broken.json()["error"]["message"]
    assert (nameless.status_code, nameless.json()["error"]["param"]) == (400, "model")
    assert array.status_code == 400
    assert large.status_code == 413
    assert packed.status_code == 415
    assert (got.status_code, got.headers["allow"]) == (405, "POST")
    assert (lost.status_code, lost.json()["error"]["code"]) == (404, "unknown_url")


def test_a_chunked_body_over_the_limit_is_refused(gateway: GatewayProcess) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(200):
            yield b" " * 10_000

    with httpx.Client(base_url=gateway.url) as client:
        assert client.post("/v1/chat/completions", content=pieces()).status_code == 413


def test_pipelined_requests_are_answered_in_order(gateway: GatewayProcess, run: Any, model: str) -> None:
    async def scenario(herd: Herd) -> None:
        await herd.add_ready_model(model, tokens=2, delay_token_s=0.02)
        reader, writer = await connect(gateway)
        requests = [
            request_bytes("/v1/chat/completions", chat(model, stream=True)),
            request_bytes("/v1/models", b"", method="GET"),
            request_bytes("/tokenize", {"model": model, "content": "a"}),
            request_bytes("/tokenize", b"{"),
            request_bytes("/v1/chat/completions", chat(model)),
            *[request_bytes("/tokenize", {"model": model, "content": "b"})] * 20,
        ]
        writer.write(b"".join(requests))
        answers = [await asyncio.wait_for(read_answer(reader), 10) for _ in requests]
        writer.close()

        assert [status for status, _, _ in answers[:5]] == [200, 200, 200, 400, 200]
        assert answers[0][2].endswith(b"[DONE]\n\n")
        assert b'"object":"list"' in answers[1][2]
        assert answers[2][2] == b'{"tokens":[97]}'
        assert b"chat.completion" in answers[4][2]
        assert all(body == b'{"tokens":[98]}' for _, _, body in answers[5:])
        await herd.finished(23, model=model)

    run(scenario)


def test_a_request_that_expects_continue_is_told_to(gateway: GatewayProcess, run: Any, model: str) -> None:
    async def scenario(herd: Herd) -> None:
        await herd.add_ready_model(model)
        body = json.dumps({"model": model, "content": "a"}).encode()
        head = request_bytes("/tokenize", body, "Expect: 100-continue").removesuffix(body)
        reader, writer = await connect(gateway)
        writer.write(head)
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert (await read_answer(reader))[0] == 200
        writer.close()

    run(scenario)


def test_chunked_bodies_and_http_1_0_are_served(gateway: GatewayProcess, run: Any, model: str) -> None:
    async def scenario(herd: Herd) -> None:
        await herd.add_ready_model(model, tokens=3)
        body = json.dumps(chat(model, stream=True)).encode()
        reader, writer = await connect(gateway)
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        for at in range(0, len(body), 7):
            piece = body[at : at + 7]
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        status, _, content = await read_answer(reader)
        writer.close()
        assert status == 200
        assert content.endswith(b"[DONE]\n\n")

        reader, writer = await connect(gateway)
        writer.write(request_bytes("/v1/chat/completions", body).replace(b"HTTP/1.1", b"HTTP/1.0"))
        answer = await asyncio.wait_for(reader.read(), 10)
        assert b"chunked" not in answer
        assert answer.endswith(b"data: [DONE]\n\n")
        writer.close()

    run(scenario)


@pytest.mark.parametrize(
    ("path", "ending"),
    [("/v1/chat/completions", b"[DONE]"), ("/v1/messages", b"message_stop"), ("/api/chat", b'"done":true')],
)
def test_a_reader_that_stopped_holds_the_upstream_back_and_no_memory(
    gateway: GatewayProcess, run: Any, model: str, path: str, ending: bytes
) -> None:
    async def scenario(herd: Herd) -> None:
        await herd.add_ready_model(model, tokens=160, text=" ".join(["x" * 100_000] * 160))
        before = gateway.rss_bytes()
        sockets = []
        for _ in range(5):
            reader, writer = await connect(gateway)
            transport_of(writer).pause_reading()
            writer.write(request_bytes(path, chat(model, stream=True, max_tokens=1000)))
            sockets.append((reader, writer))
        # 80 MB want to come: what is not in the kernel's buffers has to wait in llama-server.
        await until_state(herd, model, active=4)
        await asyncio.sleep(2)
        assert gateway.rss_bytes() - before < 30 * 2**20

        for reader, writer in sockets:
            transport_of(writer).resume_reading()
            status, _, body = await asyncio.wait_for(read_answer(reader), 20)
            assert status == 200
            assert ending in body[-1000:]
            assert body.count(b"x" * 100_000) == 160
        for _, writer in sockets:
            writer.close()

    run(scenario)


def test_a_reader_that_stopped_leaves_connections_to_llama_server_fit_for_others(
    gateway: GatewayProcess, run: Any, model: str
) -> None:
    async def scenario(herd: Herd) -> None:
        await herd.add_ready_model(model)
        reader, writer = await connect(gateway)
        transport_of(writer).pause_reading()
        async with httpx.AsyncClient(base_url=gateway.url, timeout=5) as client:
            # Small answers, each read in one piece, and more in all than the kernel holds for a client on this machine.
            # Each has a length of its own: heads that are known take another way.
            for number in range(200):
                writer.write(request_bytes("/tokenize", {"model": model, "content": "x" * (6_000 + number)}))
                asked = (client.post("/tokenize", json={"model": model, "content": "hi"}) for _ in range(3))
                for answer in await asyncio.gather(*asked):
                    assert answer.json() == {"tokens": [104, 105]}

        transport_of(writer).resume_reading()
        for number in range(200):
            status, _, body = await asyncio.wait_for(read_answer(reader), 20)
            assert (status, len(json.loads(body)["tokens"])) == (200, 6_000 + number)
        writer.close()

    run(scenario)


def test_garbage_is_refused_and_hurts_nobody(gateway: GatewayProcess) -> None:
    async def main() -> None:
        for garbage in (
            b"\x16\x03\x01hello\r\n\r\n",
            b"GET / HTTP/9\r\n\r\n",
            b"POST /tokenize HTTP/1.1\r\nA: " + b"x" * 10**5,
        ):
            reader, writer = await connect(gateway)
            writer.write(garbage)
            answer = await asyncio.wait_for(reader.read(), 10)
            assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 431")), answer
            writer.close()

    asyncio.run(main())
    assert httpx.get(f"{gateway.url}/healthz").json() == {"status": "ok"}

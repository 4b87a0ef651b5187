"""Streams in which something goes wrong, takes long, or does not come at all; `T` numbers are peers.md's."""

import asyncio
import contextlib
import itertools
import json
import re
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from harness.deadline import wait_until
from harness.gateway import GatewayProcess, Herd, free_port, run_in_herd
from harness.nats import NatsServer

pytestmark = pytest.mark.integration

_names = (f"streams-{number}.v1" for number in itertools.count(1))

MESSAGES: Final = [{"role": "user", "content": "hello there"}]
STREAMS: Final[dict[str, dict[str, Any]]] = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": "hello"},
    "/v1/responses": {"input": "hello"},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 100},
    "/api/chat": {"messages": MESSAGES},
    "/api/generate": {"prompt": "hello"},
    "/api/v1/chat": {"input": "hello"},
    "/api/v0/chat/completions": {"messages": MESSAGES},
    "/completion": {"prompt": "hello"},
}
"""One of every kind of stream."""
ENDS: Final = {
    "/v1/chat/completions": "data: [DONE]",
    "/v1/completions": "data: [DONE]",
    "/v1/responses": "response.completed",
    "/v1/messages": "message_stop",
    "/api/chat": '"done":true',
    "/api/generate": '"done":true',
    "/api/v1/chat": "chat.end",
    "/api/v0/chat/completions": "data: [DONE]",
    "/completion": '"stop":true',
}
"""What stands in the last record of each when all went well."""


@pytest.fixture(scope="module")
def nats_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = NatsServer(tmp_path_factory.mktemp("nats")).start()
    yield server.url
    server.stop()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, nats_url: str) -> Iterator[GatewayProcess]:
    """Impatient with everybody but llama-server."""
    process = GatewayProcess(
        tmp_path_factory.mktemp("gateway"),
        nats_url,
        receive_timeout_s=1,
        keep_alive_s=1,
        stalled_client_s=1,
        connect_timeout_s=1,
        load_timeout_s=3,
    ).start()
    yield process
    process.stop()


@pytest.fixture
def model() -> str:
    return next(_names)


@pytest.fixture
def run(nats_url: str, gateway: GatewayProcess) -> Callable[[Callable[[Herd], Awaitable[None]]], None]:
    return partial(run_in_herd, nats_url, gateway)


def body_of(path: str, model: str) -> dict[str, Any]:
    return {**STREAMS[path], "model": model, "stream": True}


def client_of(gateway: GatewayProcess) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=gateway.url, timeout=30, limits=httpx.Limits(max_connections=None))


def records_of(answer: httpx.Response) -> list[str]:
    """Events, or lines of NDJSON."""
    between = "\n" if "ndjson" in answer.headers["content-type"] else "\n\n"
    return [record for record in answer.text.split(between) if record.strip()]


async def ask_all(gateway: GatewayProcess, model: str) -> dict[str, httpx.Response]:
    """Every kind of stream at once, by its path."""
    async with client_of(gateway) as client:
        answers = await asyncio.gather(*[client.post(path, json=body_of(path, model)) for path in STREAMS])
    return dict(zip(STREAMS, answers, strict=True))


def test_every_stream_tells_proxies_not_to_hold_it_back(gateway: GatewayProcess, run: Any, model: str) -> None:
    """T26: behind nginx, llama-swap's streams came all at once."""

    async def scenario(herd: Herd) -> None:
        await herd.add_ready_model(model, slots=len(STREAMS), tokens=3)
        for path, answer in (await ask_all(gateway, model)).items():
            assert answer.status_code == 200, (path, answer.text)
            assert answer.headers.get_list("x-accel-buffering") == ["no"], path
            assert ENDS[path] in records_of(answer)[-1], (path, answer.text)

    run(scenario)


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory, gateway: GatewayProcess) -> Iterator[str]:
    """nginx as it comes, in front of the gateway; its address."""
    program = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/opt/homebrew/bin")
    if program is None:
        pytest.skip("no nginx")
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    temporary = "".join(f"{kind}_temp_path {folder};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
        f"http {{ access_log off; {temporary} server {{ listen 127.0.0.1:{port};\n"
        f"location / {{ proxy_pass {gateway.url}; proxy_http_version 1.1; }} }} }}\n"
    )
    process = subprocess.Popen([program, "-p", folder, "-c", folder / "nginx.conf"], stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    wait_until(lambda: _answers(url), what="nginx answers")
    yield url
    process.terminate()
    process.wait(10)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/api/chat"])
def test_streams_come_through_nginx_as_they_are_generated(nginx: str, run: Any, model: str, path: str) -> None:
    """T26, with the nginx that buffers by default; also for Ollama's NDJSON."""

    async def scenario(herd: Herd) -> None:
        await herd.add_ready_model(model, tokens=10, delay_token_s=0.05)
        came: list[float] = []
        async with (
            httpx.AsyncClient(base_url=nginx, timeout=30) as client,
            client.stream("POST", path, json=body_of(path, model)) as answer,
        ):
            async for line in answer.aiter_lines():
                if re.search(r"tok\d", line):
                    came.append(time.monotonic())
        assert len(came) == 10
        assert came[-1] - came[0] > 0.3, "all came at once"

    run(scenario)


def test_a_prompt_that_takes_long_is_waited_for(gateway: GatewayProcess, run: Any, model: str) -> None:
    """T27: hidden time-outs of llama.cpp's router and of LM Studio cut requests whose prompt took long to read."""

    async def scenario(herd: Herd) -> None:
        await herd.add_ready_model(model, slots=2 * len(STREAMS), tokens=3, delay_first_token_s=2.6)
        async with client_of(gateway) as client:
            plain = asyncio.create_task(
                client.post("/v1/chat/completions", json={"model": model, "messages": MESSAGES})
            )
            for path, answer in (await ask_all(gateway, model)).items():
                assert answer.status_code == 200, (path, answer.text)
                assert ENDS[path] in records_of(answer)[-1], (path, answer.text)
            assert (await plain).json()["choices"][0]["message"]["content"] == "tok0 tok1 tok2"

    run(scenario)


def test_an_answer_without_a_single_token_is_an_answer(gateway: GatewayProcess, run: Any, model: str) -> None:
    """T27: an answer of zero chunks was an error to LM Studio's clients."""

    async def scenario(herd: Herd) -> None:
        await herd.add_ready_model(model, slots=len(STREAMS), tokens=0)
        for path, answer in (await ask_all(gateway, model)).items():
            assert answer.status_code == 200, (path, answer.text)
            assert ENDS[path] in records_of(answer)[-1], (path, answer.text)
        events = await herd.finished(len(STREAMS), model=model)
        assert {(event.outcome, event.completion_tokens) for event in events} == {("ok", 0)}

    run(scenario)


def test_a_stream_that_ends_before_its_first_event_ends_for_the_client_too(
    gateway: GatewayProcess, run: Any, model: str
) -> None:
    """T27: what llama-server never sends must not be waited for."""

    async def scenario(herd: Herd) -> None:
        await herd.add_ready_model(model, slots=len(STREAMS), no_tokens=True)
        for path, answer in (await ask_all(gateway, model)).items():
            assert answer.status_code in (200, 502), (path, answer.text)
        await herd.finished(len(STREAMS), model=model)

    run(scenario)


def test_an_error_inside_a_stream_is_told_and_recorded_as_one(gateway: GatewayProcess, run: Any, model: str) -> None:
    """llama-server ends such a stream in good order: only its last event says that it went wrong."""

    async def scenario(herd: Herd) -> None:
        await herd.add_ready_model(model, slots=len(STREAMS), tokens=9, error_mid_stream=2)
        for path, answer in (await ask_all(gateway, model)).items():
            assert answer.status_code == 200, (path, answer.text)
            assert "told to break" in answer.text, (path, answer.text)
        events = await herd.finished(len(STREAMS), model=model)
        assert {(event.route, event.outcome, event.error) for event in events} == {
            (path, "error", "told to break") for path in STREAMS
        }

    run(scenario)


def test_an_engine_that_crashes_on_an_abort_costs_the_others_no_more_than_it_must(
    gateway: GatewayProcess, run: Any, model: str
) -> None:
    """T25: behind llama-swap, an engine that crashed when one client left lost the whole batch.

    Who has nothing yet is asked for again, of the next start; who has half an answer is told so.
    """

    async def scenario(herd: Herd) -> None:
        # Long enough for a busy machine: nobody but the first may have a token when one of them leaves.
        switches = {"tokens": 1000, "delay_token_s": 0.05, "delay_first_token_s": 3}
        await herd.add_ready_model(model, slots=3, die_on_cancel=True, **switches)

        async def restart() -> None:
            await herd.processes[model].wait()
            herd.switch(model, tokens=3)
            await herd.say_exited(model, restart_at_ns=1)
            await herd.start(model, slots=3)

        restarting = asyncio.create_task(restart())
        async with client_of(gateway) as client:
            half = asyncio.create_task(client.post("/v1/chat/completions", json=body_of("/v1/chat/completions", model)))
            await until_said(herd, model, active=1, said=2)
            first = [asyncio.create_task(client.post(path, json=body_of(path, model))) for path in ("/v1/messages",)]
            first += [asyncio.create_task(client.post("/api/chat", json=body_of("/api/chat", model)))]
            queued = asyncio.create_task(client.post("/completion", json=body_of("/completion", model)))
            await until_said(herd, model, active=3)
            first.pop().cancel()
            answers = await asyncio.gather(*first, queued)
            assert [answer.status_code for answer in answers] == [200, 200]
            assert ENDS["/completion"] in records_of(answers[-1])[-1]
            assert "middle of its answer" in (await half).text
        await restarting
        events = await herd.finished(4, model=model)
        assert sorted(event.outcome for event in events) == ["cancelled", "error", "ok", "ok"]

    run(scenario)


async def until_said(herd: Herd, model: str, *, active: int, said: int = 0) -> None:
    """Until so many requests are at work, and so many tokens have been said."""
    deadline = time.monotonic() + 10
    while True:
        state = await herd.state(model)
        if state["active"] == active and state["said"] >= said:
            return
        assert time.monotonic() < deadline, state
        await asyncio.sleep(0.02)


def test_a_word_about_an_answer_reaches_the_instance_that_gives_it(
    gateway: GatewayProcess, run: Any, model: str
) -> None:
    """`/v1/chat/completions/control`: the id means nothing to any other llama-server (api-dialects, 7)."""

    async def scenario(herd: Herd) -> None:
        await herd.add_ready_model(model, tokens=200, delay_token_s=0.05)
        await herd.start(model, index=1)
        streams: list[AsyncIterator[str]] = []
        async with client_of(gateway) as client, contextlib.AsyncExitStack() as stack:
            for number in range(4):
                messages = [{"role": "user", "content": str(number)}]
                body = {**body_of("/v1/chat/completions", model), "messages": messages}
                answer = await stack.enter_async_context(client.stream("POST", "/v1/chat/completions", json=body))
                streams.append(answer.aiter_lines())  # one that nobody holds is closed
                word = {"id": json.loads((await anext(streams[-1]))[6:])["id"], "action": "reasoning_end"}
                told = await client.post("/v1/chat/completions/control", json={"model": model, **word})
                upstream = await client.post(f"/upstream/{model}/v1/chat/completions/control", json=word)
                assert (told.json(), upstream.json()) == ({"success": True}, {"success": True})
            assert [(await herd.state(model, index=index))["active"] for index in (0, 1)] == [2, 2]

    run(scenario)


def test_a_word_about_an_answer_may_be_said_to_another_gateway(
    gateway: GatewayProcess, run: Any, model: str, nats_url: str, tmp_path: Path
) -> None:
    """Gateways behave as one: whoever does not pass the answer on asks every instance."""
    other = GatewayProcess(tmp_path, nats_url).start()

    async def scenario(herd: Herd) -> None:
        await herd.add_ready_model(model, tokens=200, delay_token_s=0.05)
        await herd.start(model, index=1)
        streams: list[AsyncIterator[str]] = []
        async with client_of(gateway) as client, client_of(other) as stranger, contextlib.AsyncExitStack() as stack:
            for number in range(2):
                messages = [{"role": "user", "content": str(number)}]
                body = {**body_of("/v1/chat/completions", model), "messages": messages}
                answer = await stack.enter_async_context(client.stream("POST", "/v1/chat/completions", json=body))
                streams.append(answer.aiter_lines())  # one that nobody holds is closed
                word = {"id": json.loads((await anext(streams[-1]))[6:])["id"], "action": "reasoning_end"}
                told = await stranger.post("/v1/chat/completions/control", json={"model": model, **word})
                assert told.json() == {"success": True}
            assert [(await herd.state(model, index=index))["active"] for index in (0, 1)] == [1, 1]
            unknown = {"model": model, "id": "chatcmpl-none", "action": "reasoning_end"}
            told = await stranger.post("/v1/chat/completions/control", json=unknown)
            assert (told.status_code, told.json()["success"]) == (200, False)

    try:
        run(scenario)
    finally:
        other.stop()

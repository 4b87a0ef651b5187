"""Clients of models that one router serves see no difference to models with a llama-server each."""

import contextlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil
import pytest

from harness.deadline import wait_until
from harness.managed_herd import ManagedHerd, managed_herd
from harness.nats import NatsServer
from llamaherd_shared.upstream_key import ROUTER

PLACES = 2
"""Models the router holds at once."""


@pytest.fixture(scope="module")
def herd(tmp_path_factory: pytest.TempPathFactory, shared_nats_server: NatsServer) -> Iterator[ManagedHerd]:
    with managed_herd(
        tmp_path_factory.mktemp("routed"),
        shared_nats_server,
        supervisor={"router_max_models": PLACES},
        models={"*": {"router": True}},
        aliases={"gpt-*": "aliased"},
    ) as herd:
        yield herd


def process_of(herd: ManagedHerd, model: str) -> psutil.Process | None:
    """The model's process in the router."""
    for process in herd.node.llama_servers(ROUTER):
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            if "--alias" in words and words[words.index("--alias") + 1] == model:
                return process
    return None


def seen_by(herd: ManagedHerd, model: str) -> dict[str, Any]:
    """What the model's process has seen."""
    process = process_of(herd, model)
    assert process is not None
    words = process.cmdline()
    port = words[words.index("--port") + 1]
    seen: dict[str, Any] = httpx.get(f"http://127.0.0.1:{port}/fake/state", timeout=5).json()
    return seen


def is_busy(herd: ManagedHerd, model: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return process_of(herd, model) is not None and seen_by(herd, model)["active"] > 0
    return False


def test_a_model_is_addressed_by_its_own_name_whatever_it_was_asked_for_by(herd: ManagedHerd) -> None:
    herd.node.add_model("aliased")
    wait_until(lambda: "aliased" in herd.names(), what="it is known")

    answers = [herd.chat(name, max_tokens=2) for name in ("gpt-5", "aliased:latest", "aliased")]

    assert [answer.status_code for answer in answers] == [200] * 3
    assert [answer.json()["model"] for answer in answers] == ["gpt-5", "aliased:latest", "aliased"]
    assert seen_by(herd, "aliased")["body"]["model"] == "aliased"


def test_every_dialect_reaches_the_right_model(herd: ManagedHerd) -> None:
    model = herd.add_model()
    messages = [{"role": "user", "content": "hello"}]

    answers = [
        herd.http.post("/api/chat", json={"model": model, "messages": messages, "stream": False}),
        herd.http.post("/v1/messages", json={"model": model, "messages": messages, "max_tokens": 4}),
        herd.http.post("/v1/responses", json={"model": model, "input": "hello"}),
        herd.http.post("/completion", json={"model": model, "prompt": "hello"}),
        herd.http.post("/tokenize", json={"model": model, "content": "hello"}),
        herd.http.post(f"/upstream/{model}/tokenize", json={"content": "hello"}),
        herd.http.get(f"/props?model={model}"),
        herd.http.get(f"/upstream/{model}/slots"),
    ]

    assert [answer.status_code for answer in answers] == [200] * len(answers)


def test_a_stream_comes_through_in_events(herd: ManagedHerd) -> None:
    model = herd.add_model(tokens=5)
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": "hello"}]}

    with herd.http.stream("POST", "/v1/chat/completions", json=body) as response:
        records = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]

    assert records[-1] == "[DONE]"
    text = "".join(json.loads(record)["choices"][0]["delta"].get("content") or "" for record in records[:-1])
    assert text.split() == [f"tok{number}" for number in range(5)]


def test_a_client_cannot_reach_another_model_of_the_router(herd: ManagedHerd) -> None:
    model, other = herd.add_model(), herd.add_model()
    for name in (model, other):
        herd.chat(name, max_tokens=1)
    before = seen_by(herd, other)["requests"]

    looked = herd.http.get(f"/upstream/{model}/props?model={other}&autoload=true")
    asked = herd.http.post(f"/upstream/{model}/tokenize?model={other}", json={"model": other, "content": "x"})
    listed = herd.http.get(f"/upstream/{model}/v1/models")
    hidden = herd.http.get(f"/upstream/{model}/v1/%6dodels")
    array = herd.http.post(f"/upstream/{model}/lora-adapters", json=[])

    assert (looked.status_code, asked.status_code) == (200, 200)
    assert seen_by(herd, other)["requests"] == before
    assert (listed.status_code, hidden.status_code, array.status_code) == (400, 400, 400)
    assert "served by a llama-server router" in listed.json()["error"]["message"]


def test_more_models_than_the_router_has_places_all_answer(herd: ManagedHerd) -> None:
    models = [herd.add_model() for _ in range(PLACES + 1)]

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda model: herd.chat(model, max_tokens=2), models * 3))

    assert [answer.text for answer in answers if answer.status_code != 200] == []


def test_a_request_is_answered_although_the_process_of_its_model_is_killed_before_the_first_byte(
    herd: ManagedHerd,
) -> None:
    model = herd.add_model(delay_first_token_s=30)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(herd.chat, model, max_tokens=2)
        wait_until(lambda: is_busy(herd, model), what="the model is at work")
        herd.switch(model)

        process = process_of(herd, model)
        assert process is not None
        process.kill()

        assert asked.result(20).status_code == 200, asked.result().text


def test_a_stream_that_its_process_breaks_off_ends_with_an_error(herd: ManagedHerd) -> None:
    model = herd.add_model(die_mid_stream=3)
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": "hello"}]}

    with herd.http.stream("POST", "/v1/chat/completions", json=body) as response:
        events = [line for line in response.iter_lines() if line]

    assert "proxy error" not in "".join(events)
    assert "ended in the middle of its answer" in json.loads(events[-1].removeprefix("data: "))["error"]["message"]


def test_a_mistake_of_the_client_is_told_as_its_llama_server_tells_it(herd: ManagedHerd) -> None:
    model = herd.add_model(error_status=500)

    answer = herd.chat(model)

    assert answer.status_code == 500
    assert "router" not in answer.text

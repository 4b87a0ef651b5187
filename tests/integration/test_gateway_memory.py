"""Requests for models of which only one fits into memory: a gateway, a supervisor, fake llama-servers."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from harness.deadline import wait_until
from harness.managed_herd import ManagedHerd, managed_herd
from harness.nats import NatsServer

MIB = 2**20
SETTINGS = {"memory_budget": "130 MiB", "min_residence_s": 0.3, "patience_s": 6.0, "release_s": 0.0}


@pytest.fixture(scope="module")
def herd(tmp_path_factory: pytest.TempPathFactory, shared_nats_server: NatsServer) -> Iterator[ManagedHerd]:
    with managed_herd(tmp_path_factory.mktemp("memory"), shared_nats_server, supervisor=SETTINGS) as herd:
        yield herd


@pytest.fixture
def models(herd: ManagedHerd) -> Iterator[tuple[str, str]]:
    """Two that do not fit together."""
    names = add_model(herd), add_model(herd)
    yield names
    for name in names:
        herd.client.generate(name, keep_alive=0)
        herd.until_unloaded(name, within_s=10)


def add_model(herd: ManagedHerd, *, size_mib: int = 60) -> str:
    name = herd.add_model(takes_mib=size_mib)
    os.truncate(herd.node.models_dir / f"{name}.gguf", size_mib * MIB)
    wait_until(lambda: size_of(herd, name) == size_mib * MIB, what=f"the supervisor has seen how large {name} is")
    return name


def size_of(herd: ManagedHerd, model: str) -> int | None:
    sizes = {entry.model: entry.size for entry in herd.client.list().models}
    return sizes[f"{model}:latest"]


def test_requests_for_two_models_that_do_not_fit_together_are_all_answered(
    herd: ManagedHerd, models: tuple[str, str]
) -> None:
    """T5, T7"""
    for name in models:
        herd.switch(name, takes_mib=60, delay_token_s=0.05, tokens=4)

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda number: herd.chat(models[number % 2]), range(24)))

    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["model"] for answer in answers} == set(models)
    starts = [len((herd.node.models_dir / f"{name}.gguf.starts").read_text().split()) for name in models]
    assert max(starts) <= 2, "they push each other out again and again"


def test_answer_that_is_given_comes_to_its_end_although_another_model_is_asked_for(
    herd: ManagedHerd, models: tuple[str, str]
) -> None:
    """T3"""
    first, second = models
    herd.switch(first, takes_mib=60, delay_token_s=0.1, tokens=40)

    with ThreadPoolExecutor(2) as pool:
        long = pool.submit(herd.chat, first)
        herd.until_busy(first)
        short = pool.submit(herd.chat, second)

        assert len(long.result().json()["choices"][0]["message"]["content"].split()) == 40
        assert short.result().status_code == 200
        assert not herd.is_loaded(first)


def test_client_that_asks_for_progress_hears_what_its_model_waits_for(
    herd: ManagedHerd, models: tuple[str, str]
) -> None:
    first, second = models
    herd.switch(first, takes_mib=60, delay_token_s=0.1, tokens=30)
    body = {"model": second, "messages": [{"role": "user", "content": "hello"}], "stream": True}

    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(herd.chat, first)
        herd.until_busy(first)
        headers = {"X-Llamaherd-Progress": "1"}
        with herd.http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
            text = answer.read().decode()
        long.result()

    assert f"{second} waits for memory: {first}, which is at work" in text
    assert text.endswith("data: [DONE]\n\n")


def test_model_that_can_never_fit_is_refused_at_once_with_the_arithmetic(herd: ManagedHerd) -> None:
    huge = add_model(herd, size_mib=300)
    began = time.monotonic()

    answer = herd.chat(huge)

    assert time.monotonic() - began < 2
    assert answer.status_code == 503
    message = answer.json()["error"]["message"]
    assert message.startswith(f"the model {huge!r} cannot be loaded: {huge} needs 325 MiB of RAM (model 300 MiB + KV")
    assert "and 130 MiB are free of the 130 MiB of RAM that models may have" in message


def test_idle_model_makes_room_as_soon_as_another_is_asked_for(herd: ManagedHerd, models: tuple[str, str]) -> None:
    first, second = models
    assert herd.chat(first).status_code == 200

    began = time.monotonic()
    answer = herd.chat(second)

    assert answer.status_code == 200
    assert time.monotonic() - began < 4
    assert not herd.is_loaded(first)


def test_other_gateway_asks_for_the_same_load(herd: ManagedHerd, models: tuple[str, str]) -> None:
    body = {"model": models[0], "messages": [{"role": "user", "content": "hello"}]}
    urls = [f"{gateway.url}/v1/chat/completions" for gateway in (herd.gateway, herd.other)]

    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda url: httpx.post(url, json=body, timeout=20), urls))

    assert [answer.status_code for answer in answers] == [200, 200]
    assert len(herd.node.llama_servers(models[0])) == 1

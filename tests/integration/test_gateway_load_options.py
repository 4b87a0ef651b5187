"""What clients want a model to be loaded with: Ollama's `num_ctx` and others, LM Studio's load; `ttl_s` and aliases."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import ollama
import pytest

from harness.deadline import wait_until
from harness.managed_herd import ManagedHerd, managed_herd
from harness.nats import NatsServer

HELLO = [{"role": "user", "content": "hello"}]
MODELS: dict[str, Any] = {
    "*": {"slots": 2, "context_tokens": 32},
    "brief*": {"ttl_s": 0.5},
    "pinned*": {"ttl_s": 0.2, "pin": True},
    "fixed*": {"client_options": False},
    "named": {"aliases": ["other-name"], "rules": {"set": {"seed": 7}}},
}


@pytest.fixture(scope="module")
def herd(tmp_path_factory: pytest.TempPathFactory, shared_nats_server: NatsServer) -> Iterator[ManagedHerd]:
    with managed_herd(tmp_path_factory.mktemp("options"), shared_nats_server, models=MODELS) as herd:
        yield herd


def add(herd: ManagedHerd, prefix: str = "", **switches: Any) -> str:
    """A model of its own for a test, by a name that fits an entry."""
    name = prefix + herd.new_name()
    herd.node.add_model(name, **switches)
    wait_until(lambda: name in herd.names() and name in herd.names(herd.other), what=f"{name} is known")
    return name


def contexts(herd: ManagedHerd, model: str) -> list[int]:
    """Of the instances that run: what `/api/ps` says."""
    answer = httpx.get(f"{herd.gateway.url}/api/ps", timeout=5).raise_for_status()
    return [entry["context_length"] for entry in answer.json()["models"] if entry["name"] == f"{model}:latest"]


def test_a_longer_context_is_loaded_and_a_shorter_one_is_answered_by_it(herd: ManagedHerd) -> None:
    model = add(herd)
    herd.client.chat(model, HELLO)
    assert contexts(herd, model) == [32]

    herd.client.chat(model, HELLO, options={"num_ctx": 64})
    assert contexts(herd, model) == [64]
    for num_ctx in (48, 64, 16):
        assert herd.client.generate(model, "hello", options={"num_ctx": num_ctx, "num_thread": 3}).done
    herd.chat(model).raise_for_status()

    assert contexts(herd, model) == [64]
    assert herd.state(model)["starts"] == 2


def test_clients_with_different_wishes_do_not_push_each_other_out(herd: ManagedHerd) -> None:
    model = add(herd, delay_first_token_s=0.05, tokens=2)
    wishes = [{"num_ctx": 40, "num_thread": 1}, {"num_ctx": 100, "num_thread": 2}, {"num_gpu": 3}, {}]

    async def client(number: int) -> None:
        url = (herd.gateway, herd.other)[number % 2].url
        async with ollama_client(url) as ask:
            for _ in range(5):
                answer = await ask.chat(model, HELLO, options=wishes[number])
                assert answer.message.content == "tok0 tok1"

    async def all_of_them() -> None:
        await asyncio.gather(*(client(number) for number in range(len(wishes))))

    asyncio.run(all_of_them())

    assert contexts(herd, model) == [100]
    assert herd.state(model)["starts"] <= 3, "at most once for each length, and once before"


def ollama_client(url: str) -> Any:
    class Client(ollama.AsyncClient):
        async def __aenter__(self) -> "Client":
            return self

        async def __aexit__(self, *_: object) -> None:
            await self._client.aclose()

    return Client(url, timeout=30)


def test_answers_under_way_are_finished_when_a_longer_context_is_needed(herd: ManagedHerd) -> None:
    model = add(herd, tokens=4, delay_token_s=0.2)
    herd.client.generate(model)

    async def both() -> tuple[httpx.Response, httpx.Response]:
        async with httpx.AsyncClient(base_url=herd.gateway.url, timeout=20) as http:
            body = {"model": model, "messages": HELLO, "stream": False}
            first = asyncio.create_task(http.post("/api/chat", json=body))
            await asyncio.to_thread(herd.until_busy, model)
            second = await http.post("/api/chat", json=body | {"options": {"num_ctx": 64}})
            return await first, second

    for answer in asyncio.run(both()):
        assert answer.json()["message"]["content"] == "tok0 tok1 tok2 tok3"
    assert contexts(herd, model) == [64]


def test_a_name_may_bring_a_context(herd: ManagedHerd) -> None:
    model = add(herd)
    herd.client.create(f"{model}-long", from_=model, parameters={"num_ctx": 80, "temperature": 0})

    herd.client.chat(model, HELLO)
    assert contexts(herd, model) == [32]
    herd.client.chat(f"{model}-long", HELLO)

    assert contexts(herd, model) == [80]


def test_other_options_count_when_a_request_loads_the_model(herd: ManagedHerd) -> None:
    model = add(herd)

    herd.client.chat(model, HELLO, options={"num_thread": 3, "num_gpu": 1, "num_batch": 64, "use_mmap": False})

    (process,) = herd.node.llama_servers(model)
    words = " ".join(process.cmdline())
    assert "--ctx-size 64 --parallel 2 --n-gpu-layers 1 --threads 3 --batch-size 64 --load-mode none" in words


def test_clients_have_no_say_where_that_is_switched_off(herd: ManagedHerd) -> None:
    model = add(herd, "fixed-")

    herd.client.chat(model, HELLO, options={"num_ctx": 100})
    herd.http.post("/api/v1/models/load", json={"model": model, "context_length": 100}).raise_for_status()

    assert contexts(herd, model) == [32]


def test_lm_studio_loads_with_options_and_is_told_them(herd: ManagedHerd) -> None:
    model = add(herd)

    def load(**options: Any) -> Any:
        body = {"model": model, "echo_load_config": True, **options}
        return herd.http.post("/api/v1/models/load", json=body).raise_for_status().json()["load_config"]

    first = load(context_length=48, flash_attention=True, parallel=3)
    assert first == {"context_length": 48, "parallel": 3, "flash_attention": True}
    assert load(context_length=40, flash_attention=True) == first, "that is what it has"
    other = load(context_length=40, flash_attention=False, eval_batch_size=128)

    assert other == {"context_length": 40, "parallel": 2, "flash_attention": False, "eval_batch_size": 128}
    listed = herd.http.get("/api/v1/models").json()["models"]
    assert [entry["loaded_instances"][0]["config"] for entry in listed if entry["key"] == model] == [other]
    assert herd.state(model)["starts"] == 2


def test_a_chat_of_lm_studio_may_need_a_context(herd: ManagedHerd) -> None:
    model = add(herd)

    herd.http.post("/api/v1/chat", json={"model": model, "input": "hello", "context_length": 72}).raise_for_status()

    assert contexts(herd, model) == [72]


def test_a_chat_of_lm_studio_may_need_a_longer_context_than_a_model_has_that_is_in_use(herd: ManagedHerd) -> None:
    model = add(herd)
    for context in (72, 72, 96):
        asked = {"model": model, "input": "hello", "context_length": context}
        herd.http.post("/api/v1/chat", json=asked).raise_for_status()

    assert contexts(herd, model) == [96]


def test_a_model_is_unloaded_after_a_while_without_requests_to_any_gateway(herd: ManagedHerd) -> None:
    brief, pinned = add(herd, "brief-"), add(herd, "pinned-")
    herd.client.chat(pinned, HELLO, keep_alive=0)
    herd.client.chat(brief, HELLO)
    assert herd.expires(brief) is not None

    herd.until_unloaded(brief)

    assert herd.is_loaded(pinned), "whatever clients say"


def test_a_client_that_says_how_long_counts_more_than_the_entry(herd: ManagedHerd) -> None:
    brief, other = add(herd, "brief-"), add(herd, "brief-")
    herd.client.chat(brief, HELLO, keep_alive=-1)

    herd.client.chat(other, HELLO)
    herd.until_unloaded(other)

    assert herd.is_loaded(brief)


def test_aliases_and_rules_of_an_entry_hold(herd: ManagedHerd) -> None:
    herd.node.add_model("named")
    wait_until(lambda: "other-name" in herd.names(), what="the alias is known")

    herd.chat("other-name", temperature=1).raise_for_status()

    assert herd.state("named")["body"]["seed"] == 7

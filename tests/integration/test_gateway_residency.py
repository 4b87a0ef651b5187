"""How long models stay in memory, over two gateways, and LM Studio's way of loading, unloading and getting them."""

import asyncio
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import ollama
import pytest

from harness.deadline import wait_until
from harness.managed_herd import ManagedHerd, managed_herd
from harness.nats import NatsServer

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def herd(tmp_path_factory: pytest.TempPathFactory, shared_nats_server: NatsServer) -> Iterator[ManagedHerd]:
    # What is unloaded in the middle of an answer would be cut soon.
    supervisor = {"drain_timeout_s": 0.3}
    with managed_herd(tmp_path_factory.mktemp("resident"), shared_nats_server, supervisor=supervisor) as herd:
        yield herd


@pytest.fixture
def client(herd: ManagedHerd) -> ollama.Client:
    return herd.client


def left_s(expires_at: str | None) -> float:
    """Seconds until then."""
    assert expires_at is not None
    at = datetime.strptime(expires_at.partition(".")[0], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC)
    return (at - datetime.now(UTC)).total_seconds()


def post(url: str, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{url}{path}", json={"stream": False, **body}, timeout=20)


@pytest.mark.parametrize("keep_alive", [0, "0", "400ms"])
def test_a_short_keep_alive_unloads(herd: ManagedHerd, client: ollama.Client, keep_alive: float | str) -> None:
    model = herd.add_model()
    assert client.chat(model, HELLO, keep_alive=keep_alive).done
    herd.until_unloaded(model)
    assert herd.expires(model) is None


def test_the_last_that_was_said_counts_and_ps_tells_it(herd: ManagedHerd, client: ollama.Client) -> None:
    model = herd.add_model()

    client.chat(model, HELLO)
    assert left_s(herd.expires(model)) > 200 * 365 * 86400, "nobody has said anything: it stays"
    client.generate(model, "hello", keep_alive="1h30m")
    assert 5300 < left_s(herd.expires(model)) <= 5400
    client.chat(model, HELLO)
    assert 5300 < left_s(herd.expires(model)) <= 5400
    client.embed(model, "", keep_alive=600)
    assert 500 < left_s(herd.expires(model)) <= 600
    wait_until(lambda: left_s(herd.expires(model, herd.other)) <= 600, what="the other gateway has heard of it")
    client.generate(model, keep_alive="-1m")
    assert left_s(herd.expires(model)) > 200 * 365 * 86400
    with pytest.raises(ollama.ResponseError) as caught:
        client.chat(model, HELLO, keep_alive="5")
    assert caught.value.status_code == 400


def test_a_model_is_loaded_and_unloaded_without_being_asked_anything(herd: ManagedHerd, client: ollama.Client) -> None:
    model = herd.add_model()

    loaded = client.generate(model)
    assert (loaded.done_reason, loaded.response, herd.state(model)["requests"]) == ("load", "", 0)
    unloaded = client.generate(model, keep_alive=0)
    assert (unloaded.done, unloaded.done_reason) == (True, "unload")
    herd.until_unloaded(model)
    assert client.chat(model, [], keep_alive=0).done_reason == "unload", "it does not load it first"
    assert not herd.is_loaded(model)
    client.chat(model, HELLO)
    assert left_s(herd.expires(model)) > 200 * 365 * 86400, "what was said ended with the unloading"


@pytest.mark.parametrize("elsewhere", [False, True])
def test_unloading_does_not_cut_what_is_being_answered(herd: ManagedHerd, elsewhere: bool) -> None:
    """Neither here nor on another gateway."""
    model = herd.add_model(tokens=2, delay_token_s=0.8)
    asking = herd.other if elsewhere else herd.gateway

    async def scenario() -> httpx.Response:
        async with httpx.AsyncClient(timeout=20) as http:
            body = {"model": model, "messages": HELLO}
            answering = asyncio.create_task(http.post(f"{asking.url}/v1/chat/completions", json=body))
            await asyncio.to_thread(herd.until_busy, model)
            unload = {"model": model, "keep_alive": 0, "stream": False}
            said = await http.post(f"{herd.gateway.url}/api/generate", json=unload)
            assert said.json()["done_reason"] == "unload"
            return await answering

    answer = asyncio.run(scenario())

    assert answer.json()["choices"][0]["message"]["content"] == "tok0 tok1"
    herd.until_unloaded(model)


def test_a_model_that_another_gateway_uses_is_not_unloaded(herd: ManagedHerd, client: ollama.Client) -> None:
    model = herd.add_model(tokens=2, delay_token_s=0.4)

    async def scenario() -> None:
        async with httpx.AsyncClient(timeout=20, base_url=herd.other.url) as http:
            body = {"model": model, "messages": HELLO}
            first = asyncio.create_task(http.post("/v1/chat/completions", json=body))
            await asyncio.to_thread(herd.until_busy, model)
            await asyncio.to_thread(client.chat, model, HELLO, keep_alive="200ms")
            # Both end at about the same time; from here on the other gateway's requests keep it.
            for _ in range(2):
                second = asyncio.create_task(http.post("/v1/chat/completions", json=body))
                await first
                first = second
            assert (await first).status_code == 200

    asyncio.run(scenario())
    starts = herd.state(model)["starts"]
    herd.until_unloaded(model)

    assert starts == 1, "it was loaded once"


def test_a_gateway_that_has_been_stopped_keeps_nothing(herd: ManagedHerd, client: ollama.Client) -> None:
    model = herd.add_model()
    post(herd.other.url, "/api/generate", model=model, prompt="hello", keep_alive="1h")
    wait_until(lambda: left_s(herd.expires(model)) <= 3600, what="it is heard of")

    herd.other.kill()
    began = time.monotonic()
    try:
        client.generate(model, keep_alive=0)
        herd.until_unloaded(model)
    finally:
        herd.other.start()

    assert time.monotonic() - began < 5


# LM Studio.


def lmstudio(herd: ManagedHerd, path: str, **body: Any) -> httpx.Response:
    return herd.http.post(f"/api/v1/models{path}", json=body)


def test_lm_studio_loads_and_unloads(herd: ManagedHerd) -> None:
    model = herd.add_model()

    loaded = lmstudio(herd, "/load", model=model, echo_load_config=True).json()
    again = lmstudio(herd, "/load", model=model).json()
    assert (loaded["type"], loaded["instance_id"], loaded["status"]) == ("llm", model, "loaded")
    assert loaded["load_config"]["context_length"] > 0
    assert loaded["load_time_seconds"] > again["load_time_seconds"]
    listed = {entry["key"]: entry for entry in herd.http.get("/api/v1/models").json()["models"]}
    assert [instance["id"] for instance in listed[model]["loaded_instances"]] == [model]

    unloaded = lmstudio(herd, "/unload", instance_id=model)
    assert unloaded.json() == {"instance_id": model}
    herd.until_unloaded(model)
    gone = lmstudio(herd, "/unload", instance_id=model)
    assert (gone.status_code, gone.json()["error"]["type"]) == (404, "model_not_found")


def test_what_is_loaded_explicitly_stays(herd: ManagedHerd, client: ollama.Client) -> None:
    model = herd.add_model()
    client.generate(model, keep_alive="1h")
    lmstudio(herd, "/load", model=model)

    assert left_s(herd.expires(model)) > 200 * 365 * 86400


def test_a_time_to_live_unloads(herd: ManagedHerd) -> None:
    model = herd.add_model()
    herd.http.post("/api/v0/chat/completions", json={"model": model, "messages": HELLO, "ttl": 0.3})
    herd.until_unloaded(model)


def test_lm_studio_says_what_is_wrong_with_a_load(herd: ManagedHerd) -> None:
    broken = herd.add_model(exit_on_start=1)

    def error(response: httpx.Response) -> tuple[int, str]:
        return response.status_code, response.json()["error"]["type"]

    assert error(lmstudio(herd, "/load", model="nothing")) == (404, "model_not_found")
    assert error(lmstudio(herd, "/load")) == (400, "invalid_request")
    assert error(lmstudio(herd, "/load", model=broken)) == (503, "internal_error")
    assert error(lmstudio(herd, "/unload")) == (400, "invalid_request")


def test_lm_studio_downloads_and_tells_how_far_it_is(herd: ManagedHerd) -> None:
    repository, stem = herd.add_repository("Q8_0", "Q4_0", hold_after=1000)
    url = f"https://huggingface.co/{repository}"

    begun = lmstudio(herd, "/download", model=url, quantization="Q4_0").json()
    assert begun["status"] == "downloading"
    total = begun["total_size_bytes"]

    def status() -> dict[str, Any]:
        content: dict[str, Any] = herd.http.get(f"/api/v1/models/download/status/{begun['job_id']}").json()
        return content

    wait_until(lambda: status().get("downloaded_bytes") == 1000, what="it has begun")
    assert (status()["status"], status()["total_size_bytes"]) == ("downloading", total)
    herd.hub.go_on.set()
    wait_until(lambda: status()["status"] == "completed", what="it is there")
    assert status()["downloaded_bytes"] == total
    assert status()["completed_at"] >= status()["started_at"]

    key = f"{repository}@q4_0"
    assert {key, f"{stem}-Q4_0"} <= set(herd.names())
    assert lmstudio(herd, "/download", model=f"{repository}@q4_0").json() == {"status": "already_downloaded"}
    assert lmstudio(herd, "/load", model=key).json()["instance_id"] == f"{stem}-Q4_0"


def test_lm_studio_says_what_is_wrong_with_a_download(herd: ManagedHerd) -> None:
    repository, _ = herd.add_repository("Q6_K", "Q5_K_M")

    def error(**body: Any) -> tuple[int, str]:
        answer = lmstudio(herd, "/download", **body)
        return answer.status_code, answer.json()["error"]["type"]

    assert error(model="maker/Nothing") == (404, "model_not_found")
    assert error(model=repository) == (400, "invalid_request")
    assert error(model="nothing") == (400, "invalid_request")
    herd.hub.switches.refuse_listing = [(502, {})] * 3
    assert error(model=repository) == (503, "internal_error")
    unknown = herd.http.get("/api/v1/models/download/status/nothing")
    assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "job_not_found")


def test_a_download_that_fails_says_so(herd: ManagedHerd) -> None:
    repository, _ = herd.add_repository("Q8_0", announced_sha256="0" * 64)
    job = lmstudio(herd, "/download", model=repository).json()["job_id"]

    wait_until(
        lambda: herd.http.get(f"/api/v1/models/download/status/{job}").json()["status"] == "failed", what="it failed"
    )

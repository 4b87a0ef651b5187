"""What a newcomer does with the demo herd: chat, list, search, look."""

import json

import gguf
import httpx
import pytest
import yaml

from harness.deadline import wait_until
from harness.herd import Herd
from harness.random_gguf import write_random_gguf


def test_cria_introduces_itself_at_temperature_zero(herd: Herd) -> None:
    answer = herd.chat("cria", "Who are you?").json()["choices"][0]["message"]["content"]

    assert "cria" in answer.lower()


def test_cria_answers_what_the_newcomer_asks(herd: Herd, request: pytest.FixtureRequest) -> None:
    expected = yaml.safe_load((request.config.rootpath / "demo" / "expected.yaml").read_text())

    wrong = []
    for entry in expected:
        if entry.keys() <= {"question", "contains", "unseen"}:  # the others need earlier turns, or are known misses
            response = herd.chat("cria", entry["question"], max_tokens=120)
            answer = response.json()["choices"][0]["message"]["content"]
            if not all(word.lower() in answer.lower() for word in entry["contains"]):
                wrong.append((entry["question"], answer))

    assert not wrong


def test_a_streamed_chat_arrives_in_chunks_and_ends_with_done(herd: Herd) -> None:
    body = {"model": "cria", "stream": True, "messages": [{"role": "user", "content": "What is llamaherd?"}]}
    with httpx.stream("POST", f"{herd.gateway_url}/v1/chat/completions", json=body, timeout=30) as response:
        records = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]

    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert records[-1] == "[DONE]"
    chunks = [json.loads(record) for record in records[:-1]]
    text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    assert len(chunks) > 5
    assert "llama" in text.lower()


def test_completions_and_models_answer_in_openai_shape(herd: Herd) -> None:
    completion = httpx.post(
        f"{herd.gateway_url}/v1/completions", json={"model": "cria", "prompt": "Hello", "max_tokens": 4}, timeout=30
    ).json()
    models = httpx.get(f"{herd.gateway_url}/v1/models", timeout=5).json()

    assert completion["object"] == "text_completion"
    assert "cria" in {model["id"] for model in models["data"]}
    assert models["object"] == "list"


def test_a_model_made_for_embeddings_is_found_loaded_and_answers_with_vectors(herd: Herd) -> None:
    path = write_random_gguf(herd.models_dir / "embedder.gguf", pooling=gguf.PoolingType.MEAN, chat=False)
    try:
        herd.eventually(
            lambda: [entry for entry in herd.fleet()["models"] if entry["model"] == "embedder"],
            within_s=15,
            what="the model is found",
        )
        body = {"model": "embedder", "input": ["one", "two"]}
        answer = httpx.post(f"{herd.gateway_url}/v1/embeddings", json=body, timeout=30).json()
    finally:
        path.unlink()
        herd.cli("unload", "embedder")

    assert [len(entry["embedding"]) for entry in answer["data"]] == [64, 64]
    assert answer["object"] == "list"


def test_an_unknown_model_is_404_and_names_the_known_ones(herd: Herd) -> None:
    response = herd.chat("criaa", "hello")

    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
    assert "cria" in response.json()["error"]["message"]


def test_bad_json_is_400_and_says_where(herd: Herd) -> None:
    response = httpx.post(f"{herd.gateway_url}/v1/chat/completions", content=b'{"model": "cria",\n oops}', timeout=5)

    assert response.status_code == 400
    assert "line 2" in response.json()["error"]["message"]


def test_each_request_is_one_fact_with_tokens_and_timings(herd: Herd) -> None:
    marker = herd.chat("cria", "hello", max_tokens=3)
    request_id = marker.headers["x-request-id"]

    def found() -> list[dict[str, object]]:
        listed = httpx.get(f"{herd.ui_url}/api/v1/requests", params={"limit": 50}, timeout=5).json()["requests"]
        return [entry for entry in listed if entry["request_id"] == request_id]

    (fact,) = wait_until(found, within_s=5, what="the request shows up")
    assert fact["status"] == 200
    assert fact["outcome"] == "ok"
    assert fact["completion_tokens"] == marker.json()["usage"]["completion_tokens"]
    assert fact["prompt_tokens"] == marker.json()["usage"]["prompt_tokens"]
    assert fact["total_ms"]


def test_a_line_of_llama_server_can_be_searched(herd: Herd) -> None:
    herd.chat("cria", "hello", max_tokens=2)

    def found() -> object:
        query = {"text": "slot", "service": "llama-server", "limit": 5}
        return httpx.get(f"{herd.ui_url}/api/v1/logs", params=query, timeout=5).json()["lines"]

    assert wait_until(found, within_s=5, what="a line of llama-server is found")


def test_the_host_and_the_instance_are_measured(herd: Herd) -> None:
    herd.chat("cria", "hello", max_tokens=2)

    def sources() -> set[str]:
        history = httpx.get(f"{herd.ui_url}/api/v1/metrics", timeout=5).json()
        return {series["source"] for series in history["series"]}

    wait_until(lambda: {"host", "instance/cria/0"} <= sources(), within_s=10, what="samples of host and instance")


def test_unload_and_load_are_seen_as_facts_in_order(herd: Herd) -> None:
    herd.chat("cria", "hello", max_tokens=1)

    unloaded = herd.cli("unload", "cria")
    state_between = herd.instance("cria").get("state", "stopped")
    loaded = herd.cli("load", "cria")

    assert unloaded.returncode == 0, unloaded.stderr
    assert state_between == "stopped"
    assert loaded.returncode == 0, loaded.stderr
    assert herd.instance("cria")["state"] == "ready"
    facts = httpx.get(f"{herd.ui_url}/api/v1/events", params={"limit": 1000}, timeout=5).json()["events"]
    types = [fact["type"] for fact in facts if fact["type"].startswith("instance.")]
    tail = [type_ for type_ in types if type_ not in ("instance.progressed.v1", "instance.measured.v1")][-5:]
    assert tail == [
        "instance.draining.v1",
        "instance.stopping.v1",
        "instance.exited.v1",
        "instance.started.v1",
        "instance.ready.v1",
    ]

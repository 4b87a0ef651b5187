"""LM Studio's REST API on a real herd: what its documentation promises, asked with plain HTTP."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from harness.herd import Herd

Ask = Callable[..., httpx.Response]


@pytest.fixture
def ask(herd: Herd) -> Ask:
    """`ask("POST", path, json)`"""

    def send(method: str, path: str, content: Any = None) -> httpx.Response:
        return httpx.request(method, f"{herd.gateway_url}{path}", json=content, timeout=60)

    return send


def events(herd: Herd, **fields: Any) -> list[tuple[str, dict[str, Any]]]:
    """What /api/v1/chat streams, comments left out."""
    body = {"model": "cria", "input": "Who are you?", "temperature": 0, "stream": True, **fields}
    with httpx.stream("POST", f"{herd.gateway_url}/api/v1/chat", json=body, timeout=60) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        blocks = response.read().decode().split("\n\n")
    told = []
    for block in blocks:
        lines = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
        if lines:
            told.append((lines["event"], json.loads(lines["data"])))
    assert all(name == content["type"] for name, content in told)
    return told


def state_of(ask: Ask, model: str) -> str:
    state: str = ask("GET", f"/api/v0/models/{model}").raise_for_status().json()["state"]
    return state


def instances_of(ask: Ask, model: str) -> list[dict[str, Any]]:
    models = ask("GET", "/api/v1/models").raise_for_status().json()["models"]
    found: list[dict[str, Any]] = next(entry for entry in models if entry["key"] == model)["loaded_instances"]
    return found


def test_a_chat_answers_with_text_and_statistics(ask: Ask) -> None:
    body = {"model": "cria", "input": "Who are you?", "system_prompt": "You are helpful.", "temperature": 0}
    content = ask("POST", "/api/v1/chat", body).raise_for_status().json()

    assert content["model_instance_id"] == "cria"
    assert [part["type"] for part in content["output"]] == ["message"]
    assert "cria" in content["output"][0]["content"].lower()
    stats = content["stats"]
    assert stats["input_tokens"] > 5
    assert stats["total_output_tokens"] > 2
    assert stats["reasoning_output_tokens"] == 0
    assert stats["tokens_per_second"] > 0
    assert stats["time_to_first_token_seconds"] > 0


def test_a_streamed_chat_tells_its_events_in_order(herd: Herd) -> None:
    told = events(herd)
    names = [name for name, _ in told]

    assert names[0] == "chat.start"
    assert names[-1] == "chat.end"
    borders = [name for name in names if name.endswith((".start", ".end")) and not name.startswith("model_load")]
    assert borders == [
        "chat.start",
        "prompt_processing.start",
        "prompt_processing.end",
        "message.start",
        "message.end",
        "chat.end",
    ]
    text = "".join(content["content"] for name, content in told if name == "message.delta")
    assert told[-1][1]["result"]["output"] == [{"type": "message", "content": text}]
    assert "cria" in text.lower()


def test_a_chat_goes_on_from_the_one_before(herd: Herd, ask: Ask) -> None:
    def said(**fields: Any) -> dict[str, Any]:
        body = {"model": "cria", "temperature": 0, "max_output_tokens": 16, **fields}
        content: dict[str, Any] = ask("POST", "/api/v1/chat", body).raise_for_status().json()
        return content

    first = said(input="Who are you?", system_prompt="You are helpful.")
    second = said(input="What do you eat?", previous_response_id=first["response_id"])
    last = events(herd, input="Where?", previous_response_id=second["response_id"])[-1][1]["result"]
    unkept = said(input="Where?", previous_response_id=second["response_id"], store=False)

    counts = [content["stats"]["input_tokens"] for content in (first, second, last, unkept)]
    assert counts[0] < counts[1] < counts[2] == counts[3]
    assert len({first["response_id"], second["response_id"], last["response_id"]}) == 3
    assert "response_id" not in unkept


def test_models_are_loaded_listed_and_unloaded(herd: Herd, ask: Ask) -> None:
    loaded = ask("POST", "/api/v1/models/load", {"model": "cria", "echo_load_config": True}).raise_for_status().json()
    assert (loaded["type"], loaded["status"]) == ("llm", "loaded")
    assert loaded["load_config"]["context_length"] > 0
    (instance,) = instances_of(ask, "cria")
    assert instance["id"] == loaded["instance_id"]
    assert instance["config"]["context_length"] == loaded["load_config"]["context_length"]
    assert state_of(ask, "cria") == "loaded"

    unloaded = ask("POST", "/api/v1/models/unload", {"instance_id": instance["id"]}).raise_for_status().json()
    assert unloaded == {"instance_id": instance["id"]}
    herd.eventually(lambda: instances_of(ask, "cria") == [], within_s=20, what="cria to be unloaded")
    assert state_of(ask, "cria") == "not-loaded"

    again = ask("POST", "/api/v1/models/unload", {"instance_id": instance["id"]})
    assert (again.status_code, again.json()["error"]["type"]) == (404, "model_not_found")

    # The next chat loads it, and says so.
    told = events(herd, max_output_tokens=4)
    names = [name for name, _ in told]
    assert names[:3] == ["chat.start", "model_load.start", "model_load.end"]
    assert told[-1][1]["result"]["stats"]["model_load_time_seconds"] == told[2][1]["load_time_seconds"] > 0


def test_lists_describe_the_model(ask: Ask) -> None:
    v1 = next(entry for entry in ask("GET", "/api/v1/models").json()["models"] if entry["key"] == "cria")
    v0 = ask("GET", "/api/v0/models/cria").raise_for_status().json()

    assert (v1["type"], v1["format"], v0["type"], v0["compatibility_type"]) == ("llm", "gguf", "llm", "gguf")
    assert v1["architecture"] == v0["arch"] == "llama"
    assert v1["max_context_length"] == v0["max_context_length"] > 0
    assert v0 in ask("GET", "/api/v0/models").json()["data"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "prompt"),
    [
        ("/api/v0/chat/completions", {"messages": [{"role": "user", "content": "Who are you?"}]}),
        ("/api/v0/completions", {"prompt": "Llamas are"}),
    ],
)
def test_v0_adds_its_figures_to_openais_answers(ask: Ask, path: str, prompt: dict[str, Any], stream: bool) -> None:
    body = {"model": "cria", "max_tokens": 3, "ttl": 3600, "temperature": 0, "stream": stream, **prompt}
    response = ask("POST", path, body).raise_for_status()

    if stream:
        *_, last, done = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data")]
        assert done == "[DONE]"
        content = json.loads(last)
    else:
        content = response.json()
        assert content["usage"]["completion_tokens"] == 3
    assert content["model"] == "cria"
    assert content["stats"]["stop_reason"] == "maxPredictedTokensReached"
    assert content["stats"]["tokens_per_second"] > 0
    assert content["model_info"]["arch"] == "llama"
    assert content["model_info"]["context_length"] > 0
    assert content["runtime"]["supported_formats"] == ["gguf"]


def test_max_tokens_of_minus_one_means_no_limit(ask: Ask) -> None:
    body = {"model": "cria", "messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": -1}
    content = ask("POST", "/api/v0/chat/completions", {**body, "temperature": 0}).raise_for_status().json()

    assert content["stats"]["stop_reason"] == "eosFound"
    assert content["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("fields", "status", "kind", "param"),
    [
        ({"model": "nobody"}, 404, "model_not_found", "model"),
        ({"model": None}, 400, "invalid_request", "model"),
        ({"seed": 1}, 400, "invalid_request", "seed"),
        ({"integrations": ["mcp/playwright"]}, 501, "not_implemented", "integrations"),
        ({"previous_response_id": "resp_1"}, 400, "invalid_request", "previous_response_id"),
        ({"reasoning": "high"}, 400, "invalid_request", "reasoning"),
    ],
)
def test_errors_are_in_lm_studios_words(ask: Ask, fields: dict[str, Any], status: int, kind: str, param: str) -> None:
    response = ask("POST", "/api/v1/chat", {"model": "cria", "input": "Hi", **fields})

    error = response.json()["error"]
    assert (response.status_code, error["type"], error["param"]) == (status, kind, param)
    assert error["message"]


def test_an_unknown_model_of_v0_is_refused_as_by_openai(ask: Ask) -> None:
    for method, path, body in (
        ("GET", "/api/v0/models/nobody", None),
        ("POST", "/api/v0/completions", {"model": "nobody", "prompt": "x"}),
    ):
        response = ask(method, path, body)
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "model_not_found"

"""Ollama's lists, its descriptions of a model, its errors, and the records of what is done with models."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from llamaherd_gateway.dialects.dialect import Card, Description, Herd, Loaded, PageRequest, Preset
from llamaherd_gateway.dialects.ollama import (
    OLLAMA,
    OLLAMA_EMBEDDING,
    PAGES,
    Copy,
    Delete,
    Pull,
    pulling,
    read_copy,
    read_create,
    read_delete,
    read_pull,
    read_show,
    render_progress,
    render_show,
)
from llamaherd_gateway.dialects.ollama.details import render_count
from llamaherd_gateway.problems import BadRequest, Problem, UnknownModel, problem_of, read_error
from llamaherd_gateway.routing.table import unknown_model_message

GOLDEN = Path(__file__).parents[2] / "golden" / "llama_server"
SECOND = 1_000_000_000
NOW_NS = 1_700_000_000 * SECOND


def loaded(state: str = "ready", expires_ns: int | None = None) -> Loaded:
    return Loaded(name="n/m/0", node="n", state=state, context_tokens=4096, slots=2, expires_ns=expires_ns)


QWEN = Card(
    name="qwen",
    model="qwen",
    architecture="qwen3",
    parameters=8_030_261_248,
    size_bytes=5_000,
    context_tokens=40_960,
    quantization="Q4_K_M",
    modified_ns=10 * SECOND,
    capabilities=frozenset({"thinking", "tools", "completion", "insert"}),
    loaded=(loaded(), loaded("stopped")),
)
ALIAS = Card(name="a/chat:8b", model="qwen", modified_ns=10 * SECOND, loaded=QWEN.loaded)
BERT = Card(
    name="bert",
    model="bert",
    modified_ns=20 * SECOND,
    capabilities=frozenset({"embedding"}),
    size_bytes=7,
    loaded=(loaded(expires_ns=NOW_NS + SECOND), loaded(expires_ns=NOW_NS + 5 * SECOND)),
)
HERD = Herd(cards=(ALIAS, BERT, QWEN), now_ns=NOW_NS, version="0.1.0")


def get(path: str, method: str = "GET", herd: Herd = HERD) -> tuple[int, Any]:
    """(status, content)"""
    page = next(page for page in PAGES if (page.method, page.path) == (method, path))
    reply = page.answer(PageRequest(method=method), herd)
    assert reply.content_type.startswith("application/json")
    return reply.status, json.loads(reply.body)


def test_the_version_is_numbers_with_dots() -> None:
    version = get("/api/version")[1]["version"]
    assert all(part.isdigit() for part in version.split("."))


def test_tags_lists_every_name_the_newest_first() -> None:
    models = get("/api/tags")[1]["models"]

    assert [model["name"] for model in models] == ["bert:latest", "a/chat:8b", "qwen:latest"]
    assert models[2] == {
        "name": "qwen:latest",
        "model": "qwen:latest",
        "modified_at": "1970-01-01T00:00:10.000000000Z",
        "size": 5_000,
        "digest": QWEN.digest,
        "details": {
            "parent_model": "",
            "format": "gguf",
            "family": "qwen3",
            "families": ["qwen3"],
            "parameter_size": "8.0B",
            "quantization_level": "Q4_K_M",
            "context_length": 40_960,
        },
        "capabilities": ["completion", "tools", "insert", "thinking"],
    }
    assert models[1]["details"]["parent_model"] == "qwen"
    assert models[0]["details"]["family"] == "unknown"


def test_ps_lists_models_in_memory_once_the_one_that_stays_longest_first() -> None:
    models = get("/api/ps")[1]["models"]

    assert [model["name"] for model in models] == ["qwen:latest", "bert:latest"]
    assert (models[0]["size"], models[0]["context_length"]) == (5_000, 4096)
    assert models[1]["size"] == 14
    assert datetime.fromisoformat(models[0]["expires_at"][:19]).year == 2316
    assert models[1]["expires_at"] == "2023-11-14T22:13:25.000000000Z"


def test_an_alias_alone_stands_for_its_model() -> None:
    models = get("/api/ps", herd=Herd(cards=(ALIAS,), now_ns=NOW_NS, version="1"))[1]["models"]
    assert [model["name"] for model in models] == ["a/chat:8b"]


@pytest.mark.parametrize(
    ("method", "path", "status", "content"),
    [
        ("GET", "/api/status", 200, {"cloud": {"disabled": True, "source": "config"}}),
        ("GET", "/api/experimental/model-recommendations", 200, {"recommendations": []}),
        ("POST", "/api/push", 400, {"error": "push is not supported: this server keeps no registry"}),
        ("POST", "/api/me", 401, {"error": "unauthorized"}),
        ("POST", "/api/signout", 401, {"error": "unauthorized"}),
        ("DELETE", "/api/user/keys/{key*}", 401, {"error": "unauthorized"}),
        (
            "POST",
            "/api/experimental/web_search",
            403,
            {"error": "ollama cloud is disabled: web search is unavailable"},
        ),
        ("POST", "/api/experimental/web_fetch", 403, {"error": "ollama cloud is disabled: web fetch is unavailable"}),
    ],
)
def test_pages_without_models(method: str, path: str, status: int, content: Any) -> None:
    assert get(path, method) == (status, content)


def test_heads_of_version_and_tags_are_answered() -> None:
    assert {page.path for page in PAGES if page.method == "HEAD"} == {"/api/version", "/api/tags"}


@pytest.mark.parametrize(
    ("number", "text"),
    [(7_000_000_000, "7B"), (494_032_768, "494.03M"), (1_500_000_000, "1.5B"), (1_234, "1K"), (12, "12")],
)
def test_counts_are_short(number: int, text: str) -> None:
    assert render_count(number) == text


def test_a_model_is_shown_in_all_detail() -> None:
    metadata = {
        "general.architecture": "qwen3",
        "general.name": "Qwen",
        "general.license": "apache-2.0",
        "qwen3.context_length": 40_960,
        "tokenizer.chat_template": "{{ x }}",
        "tokenizer.ggml.tokens": ["a"] * 6,
        "short": [1, 2],
    }
    description = Description(metadata=metadata, chat_template="{{ x }}", tensors=[("w", "F16", [2, 3])])
    preset = Preset(options={"num_ctx": 4096, "stop": ["<a>", "b"]}, system="Hi")
    shown = json.loads(render_show(QWEN, description, preset=preset))

    assert shown["model_info"] == {
        "general.architecture": "qwen3",
        "general.parameter_count": 8_030_261_248,
        "general.license": "apache-2.0",
        "qwen3.context_length": 40_960,
        "tokenizer.ggml.tokens": [],
        "short": [1, 2],
    }
    assert shown["parameters"].splitlines() == [
        f"{'num_ctx':<30} 4096",
        f'{"stop":<30} "<a>"',
        f'{"stop":<30} "b"',
    ]
    assert shown["modelfile"].startswith('FROM qwen:latest\nTEMPLATE """{{ x }}')
    assert shown["tensors"] == [{"name": "w", "type": "F16", "shape": [2, 3]}]
    assert shown["capabilities"] == ["completion", "tools", "insert", "thinking"]
    assert ".Suffix" in shown["template"], "editors look for this word before they ask for a filling"
    everything = json.loads(render_show(QWEN, description, verbose=True))
    assert everything["model_info"]["tokenizer.ggml.tokens"] == ["a"] * 6


def test_model_info_is_there_when_nothing_is_known() -> None:
    shown = json.loads(render_show(Card(name="m", model="m"), Description()))
    assert shown["model_info"] == {}


def test_one_client_wants_the_name_it_asked_for() -> None:
    shown = json.loads(render_show(QWEN, Description(), asked="qwen", user_agent="GitHubCopilotChat/1.0"))
    assert shown["model_info"]["general.basename"] == "qwen"
    assert "general.basename" not in json.loads(render_show(QWEN, Description()))["model_info"]


def test_bodies_of_management_are_read_with_their_old_names_too() -> None:
    assert read_show(b'{"name": "m", "verbose": true}') == ("m", True)
    assert read_pull(b'{"name": "hf.co/me/m:Q4", "stream": false}') == Pull(model="hf.co/me/m:Q4", stream=False)
    assert read_copy(b'{"source": "a", "destination": "b"}') == Copy(source="a", destination="b")
    assert read_delete(b'{"name": "m"}') == Delete(model="m")
    made = read_create(b'{"model": "m", "from": "qwen", "license": "MIT", "parameters": {"top_k": 1}, "system": "Hi"}')
    assert (made.source, made.license, made.parameters, made.system, made.stream) == (
        "qwen",
        ["MIT"],
        {"top_k": 1},
        "Hi",
        True,
    )


@pytest.mark.parametrize(
    ("read", "body", "message"),
    [
        (read_show, b"{}", "model is required"),
        (read_pull, b"{}", "invalid model name"),
        (read_pull, b"", "missing request body"),
        (read_pull, b'{"model": "m:cloud"}', "ollama cloud is disabled: remote model is unavailable"),
        (read_create, b'{"model": "m"}', "neither 'from' or 'files' was specified"),
        (read_copy, b'{"source": "a"}', 'destination "" is invalid'),
        (read_copy, b'{"source": "/", "destination": "b"}', 'source "/" is invalid'),
        (read_delete, b"{}", "model is required"),
        (read_delete, b'{"model": ":"}', 'name ":" is invalid'),
    ],
)
def test_bodies_of_management_are_refused_in_ollamas_words(read: Any, body: bytes, message: str) -> None:
    with pytest.raises(BadRequest) as caught:
        read(body)
    assert caught.value.message == message


def test_progress_is_one_line_with_sizes_only_when_known() -> None:
    digest = "sha256:" + "ab" * 32
    assert render_progress("pulling manifest") == b'{"status":"pulling manifest"}\n'
    assert json.loads(render_progress(pulling(digest), digest=digest, total=10, completed=5)) == {
        "status": "pulling abababababab",
        "digest": digest,
        "total": 10,
        "completed": 5,
    }


@pytest.mark.parametrize("name", ["nix", "it's", 'a"b', "a\\b", "x" * 90])
def test_an_unknown_model_is_named_in_ollamas_words(name: str) -> None:
    problem = problem_of(UnknownModel(unknown_model_message(name, ("cria",))))
    assert json.loads(OLLAMA.render_problem(problem, "")) == {"error": f"model '{name}' not found"}
    told = json.loads(OLLAMA_EMBEDDING.render_problem(problem, ""))["error"]
    assert told == f"model {json.dumps(name)} not found, try pulling it first"


def test_errors_are_one_sentence_and_statuses_ollamas() -> None:
    def told(name: str, status: int) -> tuple[int, str]:
        problem = read_error(status, (GOLDEN / name).read_bytes(), "n/m/0")
        return OLLAMA.status_of(problem), json.loads(OLLAMA.render_problem(problem, ""))["error"]

    assert told("error_embeddings_too_long.json", 500) == (400, "the input length exceeds the context length")
    assert told("error_embeddings_off.json", 501)[0] == 400
    assert told("error_image.json", 500)[0] == 400
    assert told("error_context.json", 400)[1].startswith("request (")
    busy = Problem(status=503, message="6 requests wait", code="queue_full")
    assert OLLAMA.render_stream_error(busy, "") == (
        b'{"error":"server busy, please try again.  maximum pending requests exceeded"}\n'
    )


def test_what_a_creation_brings_is_read_and_checked() -> None:
    made = read_create(
        b'{"model": "m", "from": "q", "parameters": {"stop": "END", "top_k": 1.0, "seed": null, "odd": [1]},'
        b' "messages": [{"role": "user", "content": "hi"}]}'
    )
    assert made.parameters == {"stop": ["END"], "top_k": 1.0, "odd": [1]}
    assert made.messages == [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    "fields",
    [
        b'"parameters": {"temperature": "hot"}',
        b'"messages": [{"role": "tool", "content": "hi"}]',
        b'"messages": [{"role": "user", "content": "hi", "images": ["aGk="]}]',
        b'"messages": [{"role": "user"}]',
    ],
)
def test_what_a_creation_cannot_bring_is_refused(fields: bytes) -> None:
    with pytest.raises(BadRequest):
        read_create(b'{"model": "m", "from": "q", ' + fields + b"}")

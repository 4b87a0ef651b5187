"""The document tells of every route that the tables hold, and in each dialect's own words."""

import json
import re
from typing import Any

import pytest

from harness.generators import load_generator
from llamaherd_gateway.openapi import render_document
from llamaherd_gateway.routes import HEALTH

api = load_generator("api")
DOCUMENT = json.loads(render_document(api.handlers(), keys_required=True))


def operation(method: str, path: str) -> dict[str, Any]:
    found: dict[str, Any] = DOCUMENT["paths"][path][method.lower()]
    return found


def schema_of(response: dict[str, str]) -> Any:
    """Of an answer's JSON."""
    content = DOCUMENT["components"]["responses"][response["$ref"].rpartition("/")[2]]["content"]
    return content["application/json"]["schema"]


def test_every_route_stands_in_it_under_its_dialect_with_what_it_is_about() -> None:
    described = {
        (method.upper(), re.sub(r"\{.*?\}", "{}", path), tag, about)
        for path, methods in DOCUMENT["paths"].items()
        for method, found in methods.items()
        for tag in found["tags"]
        for about in (found["summary"], *found.get("description", "").splitlines())
    }

    for row in api.rows():
        assert (row.method, re.sub(r"\{.*?\}", "{}", row.path), row.dialect.name, row.about) in described
    assert {*api.LOOKS, *HEALTH, "/upstream/{model}/{path}"} <= set(DOCUMENT["paths"])


def test_every_hole_of_a_path_is_a_parameter() -> None:
    for path, methods in DOCUMENT["paths"].items():
        for found in methods.values():
            named = [each["name"] for each in found.get("parameters", ()) if each["in"] == "path"]
            assert named == re.findall(r"\{(.*?)\}", path), path


def test_a_body_is_described_by_its_struct_and_what_it_needs() -> None:
    body = operation("POST", "/v1/messages")["requestBody"]

    reference, needed = body["content"]["application/json"]["schema"]["allOf"]
    assert body["required"] is True
    assert reference == {"$ref": "#/components/schemas/MessagesBody"}
    assert needed["required"] == ["model", "messages", "max_tokens"]
    assert {"system", "thinking"} <= set(DOCUMENT["components"]["schemas"]["MessagesBody"]["properties"])
    assert body["content"]["application/json"]["example"]["max_tokens"] == 32


def test_a_body_that_llama_server_judges_is_any_object_with_a_model() -> None:
    body = operation("POST", "/tokenize")["requestBody"]["content"]["application/json"]

    model = {"type": "string", "minLength": 1}
    assert body["schema"] == {"type": "object", "required": ["model"], "properties": {"model": model}}


@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        ("POST", "/v1/audio/transcriptions", "multipart/form-data"),
        ("POST", "/api/blobs/{digest}", "application/octet-stream"),
        ("DELETE", "/api/delete", "application/json"),
    ],
)
def test_a_body_has_the_content_type_that_its_route_takes(method: str, path: str, kind: str) -> None:
    assert list(operation(method, path)["requestBody"]["content"]) == [kind]


def test_what_takes_no_body_has_none() -> None:
    for method, path in (("DELETE", "/v1/models/{id}"), ("GET", "/api/tags"), ("HEAD", "/api/blobs/{digest}")):
        assert "requestBody" not in operation(method, path), path


def test_streams_have_their_own_content_type() -> None:
    for path, kind in (("/v1/chat/completions", "text/event-stream"), ("/api/pull", "application/x-ndjson")):
        assert list(operation("POST", path)["responses"]["200"]["content"]) == ["application/json", kind]


def test_refusals_have_the_dialects_statuses_and_shapes() -> None:
    openai, anthropic, ollama, lmstudio = (
        operation("POST", path)["responses"]
        for path in ("/v1/chat/completions", "/v1/messages", "/api/chat", "/api/v1/chat")
    )

    assert {"503", "529", "501"} & set(openai) == {"503"}
    assert {"503", "529", "501"} & set(anthropic) == {"529"}
    assert {"503", "529", "501"} & set(lmstudio) == {"503", "501"}
    assert schema_of(anthropic["529"]) == {"$ref": "#/components/schemas/anthropic.Error"}
    assert schema_of(ollama["404"]) == {"$ref": "#/components/schemas/ollama.Error"}
    assert schema_of(operation("POST", "/api/v0/completions")["responses"]["404"]) == schema_of(openai["404"])
    assert DOCUMENT["components"]["schemas"]["ollama.Error"]["properties"] == {"error": {"type": "string"}}


def test_a_path_of_two_dialects_is_answered_in_either_shape() -> None:
    found = operation("GET", "/v1/models")

    assert found["tags"] == ["openai", "anthropic"]
    assert [each["name"] for each in found["parameters"]] == ["anthropic-version"]
    shapes = schema_of(found["responses"]["401"])["anyOf"]
    assert [shape["$ref"].rpartition("/")[2] for shape in shapes] == ["openai.Error", "anthropic.Error"]


def test_a_route_that_is_always_refused_promises_nothing_else() -> None:
    for path in ("/api/push", "/v1/responses/{id}/cancel"):
        assert "200" not in operation("POST", path)["responses"], path


def test_what_is_public_needs_no_key_and_everything_else_does() -> None:
    free = {path for path, methods in DOCUMENT["paths"].items() if methods.get("get", {}).get("security") == []}

    assert free == {"/", "/healthz", "/readyz", "/health", "/internal/blobs/{digest}"}
    assert {"bearer": []} in DOCUMENT["security"]
    assert {} not in DOCUMENT["security"]
    assert {} in json.loads(render_document(api.handlers(), keys_required=False))["security"]

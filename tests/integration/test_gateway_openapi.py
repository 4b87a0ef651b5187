"""The gateway describes itself, and a real one answers as described, whatever it is asked."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator, validate

from harness.deadline import wait_until
from harness.described_api import fuzz
from harness.managed_herd import ManagedHerd, digest_of, managed_herd
from harness.nats import NatsServer

MANAGEMENT: Final = "|".join(
    (
        "/api/(tags|ps|show|pull|create|copy|delete|version|status|push|me|signout|user.*|experimental.*|blobs.*)",
        "/(api/v1|api/v0|v1)/models.*",
        "/internal/.*",
        "/(props|slots|metrics|lora-adapters|health|healthz|readyz|openapi.json|)",
    )
)
"""Every route that no model generates anything for."""
AGREES: Final = ",".join(
    (
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
        "negative_data_rejection",
        "unsupported_method",
        "allow_header_conformance",
    )
)
REPOSITORY: Final = "ggml-org/gemma-3-270m-it-GGUF"
"""The one that the document's examples pull."""


@pytest.fixture(scope="module")
def herd(tmp_path_factory: pytest.TempPathFactory, shared_nats_server: NatsServer) -> Iterator[ManagedHerd]:
    with managed_herd(tmp_path_factory.mktemp("managed"), shared_nats_server) as herd:
        yield herd


@pytest.fixture(scope="module")
def document(herd: ManagedHerd) -> dict[str, Any]:
    answer = herd.http.get("/openapi.json").raise_for_status()
    assert answer.headers["content-type"] == "application/json"
    found: dict[str, Any] = answer.json()
    return found


def test_the_document_is_valid(document: dict[str, Any]) -> None:
    validate(document, cls=OpenAPIV31SpecValidator)


def test_without_what_it_needs_a_body_is_refused(herd: ManagedHerd, document: dict[str, Any]) -> None:
    """Of routes that models answer, tests/cases/dialects knows."""
    for path, method in (
        ("/api/show", "POST"),
        ("/api/pull", "POST"),
        ("/api/create", "POST"),
        ("/api/copy", "POST"),
        ("/api/delete", "DELETE"),
        ("/api/v1/models/load", "POST"),
        ("/api/v1/models/unload", "POST"),
        ("/api/v1/models/download", "POST"),
    ):
        media = document["paths"][path][method.lower()]["requestBody"]["content"]["application/json"]
        _, needed = media["schema"]["allOf"]
        assert needed["required"], path
        for field in needed["required"]:
            body = {name: value for name, value in media["example"].items() if name != field}
            assert herd.http.request(method, path, json=body).status_code == 400, (path, field)


def test_managing_models_survives_schemathesis(herd: ManagedHerd, tmp_path: Path) -> None:
    names = [herd.add_model() for _ in range(3)]
    herd.hub.files[REPOSITORY] = {"gemma-3-270m-it-Q8_0.gguf": herd.new_content()}
    sent = herd.new_content()
    herd.http.post(f"/api/blobs/{digest_of(sent)}", content=sent).raise_for_status()

    fuzz(
        f"{herd.gateway.url}/openapi.json",
        tmp_path,
        *("--phases", "examples,coverage,fuzzing", "--max-examples", "20"),
        *("--include-path-regex", f"^({MANAGEMENT})$"),
        checks=AGREES,
        words=[*names, "cria", "assistant", f"hf.co/{REPOSITORY}:Q8_0", digest_of(sent)],
    )

    assert "Traceback" not in herd.gateway.log.read_text()
    assert httpx.get(f"{herd.gateway.url}/readyz").status_code == 200
    kept = herd.add_model()
    assert herd.chat(kept).status_code == 200, "it serves as before"


def test_models_answer_as_described(herd: ManagedHerd, tmp_path: Path) -> None:
    """Fuzzing of these routes is in test_gateway_fuzz.py; here their answers are compared with the document."""
    herd.node.add_model("cria")
    wait_until(lambda: "cria" in herd.names(), what="the model of the examples is known")

    fuzz(
        f"{herd.gateway.url}/openapi.json",
        tmp_path,
        *("--phases", "examples,fuzzing", "--max-examples", "5", "--exclude-path-regex", f"^({MANAGEMENT})$"),
        checks=AGREES,
        words=["cria"],
    )


def test_what_only_looks_says_how_in_llama_servers_words(herd: ManagedHerd) -> None:
    unnamed, posted = herd.http.get("/props"), herd.http.post("/props?model=any")

    assert unnamed.json()["error"] == {
        "code": 400,
        "message": "name the model: /props?model=NAME",
        "type": "invalid_request_error",
    }
    assert (posted.status_code, posted.headers["allow"]) == (405, "GET")
    assert posted.json()["error"]["message"] == "/props takes GET, not POST"

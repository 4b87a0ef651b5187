"""llama-server's own routes: which model is meant, what only looks, and what never passes."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.golden import golden
from llamaherd_gateway.dialects.dialect import Call, Facts, Turn
from llamaherd_gateway.dialects.llama import (
    LLAMA,
    ROUTES,
    is_administrative,
    is_forbidden,
    is_passive,
    split_query,
    split_upstream,
)
from llamaherd_gateway.problems import BadRequest, Problem, read_error

KNOWN = frozenset({"cria", "acme/llama", "acme/llama/big", "modèle"})
TURN = Turn(request_id="0", received_ns=0)


@pytest.mark.parametrize(
    ("target", "model", "rest"),
    [
        (b"/upstream/cria/props", "cria", b"/props"),
        (b"/upstream/cria/slots?fail_on_no_slot=1", "cria", b"/slots?fail_on_no_slot=1"),
        (b"/upstream/cria", "cria", b"/"),
        (b"/upstream/cria/", "cria", b"/"),
        (b"/upstream/cria?x=/y", "cria", b"/?x=/y"),
        (b"/upstream/acme/llama/v1/models", "acme/llama", b"/v1/models"),
        (b"/upstream/acme%2Fllama/props", "acme/llama", b"/props"),
        (b"/upstream/acme/llama/big/props", "acme/llama/big", b"/props"),
        (b"/upstream/acme/llama/bigger", "acme/llama", b"/bigger"),
        (b"/upstream/mod%C3%A8le/a%20b", "modèle", b"/a%20b"),
        (b"/upstream/lama/props", "lama", b"/props"),
        (b"/upstream/acme/props", "acme", b"/props"),
        (b"/upstream/", "", b"/"),
    ],
)
def test_the_longest_known_name_wins_and_the_rest_stays_as_written(target: bytes, model: str, rest: bytes) -> None:
    assert split_upstream(target, KNOWN) == (model, rest)


def test_a_path_of_slashes_is_not_tried_out() -> None:
    assert split_upstream(b"/upstream/cria" + b"/" * 30_000, KNOWN) == ("cria", b"/" * 30_000)


def test_other_paths_are_nobodys_upstream() -> None:
    assert split_upstream(b"/upstreams/cria", KNOWN) is None
    assert split_upstream(b"/props", KNOWN) is None


@given(st.binary(max_size=40), st.sampled_from(sorted(KNOWN)))
@settings(max_examples=40)
def test_any_target_is_taken_apart_without_losing_its_end(rest: bytes, model: str) -> None:
    found = split_upstream(b"/upstream/" + model.encode() + b"/" + rest, KNOWN)
    assert found is not None
    assert found[0].startswith(model)
    assert (b"/" + rest).endswith(found[1]) or found[1] == b"/"


@pytest.mark.parametrize(
    ("target", "model", "rest"),
    [
        (b"/props?model=cria", "cria", b"/props"),
        (b"/slots?fail_on_no_slot=1&model=acme%2Fllama&x=", "acme/llama", b"/slots?fail_on_no_slot=1&x="),
        (b"/metrics?model=mod%C3%A8le", "modèle", b"/metrics"),
        (b"/metrics?x=1", None, b"/metrics?x=1"),
        (b"/metrics", None, b"/metrics"),
    ],
)
def test_the_query_names_the_model(target: bytes, model: str | None, rest: bytes) -> None:
    assert split_query(target) == (model, rest)


@pytest.mark.parametrize(
    "path", ["/props", "/slots", "/metrics", "/lora-adapters", "/health", "/v1/models", "/%70rops"]
)
def test_looking_never_loads_a_model(path: str) -> None:
    assert is_passive("GET", path)
    assert is_passive("HEAD", path.encode() + b"?x=1")
    assert not is_passive("POST", path)


def test_everything_else_may_load_one() -> None:
    assert not any(is_passive("GET", path) for path in ("/", "/completion", "/slots/0", "/index.html"))


@pytest.mark.parametrize(
    "path",
    [
        "/tools",
        "/cors-proxy",
        "/cors-proxy?url=http://x",
        "/models/load",
        "/models/unload",
        "/models/sse",
        "/models",
        "/v1/stream",
        "/v1/streams/lookup",
        "/%74ools",
        "/%2574ools",
        "//tools",
        "/./tools",
        "/x/../tools",
        "/x/%2e%2e/tools",
        "/tools/",
        "/tools%2F",
        "/TOOLS",
        "\\tools",
        "/tools;x",
        "/tools.",
    ],
)
def test_what_never_passes_does_not_pass_in_disguise(path: str) -> None:
    assert is_forbidden(path)
    assert is_forbidden(path.encode())


@pytest.mark.parametrize("path", ["/", "/props", "/v1/models", "/completion", "/toolshed", "/slots/0", "/v1/chat"])
def test_the_rest_passes(path: str) -> None:
    assert not is_forbidden(path)


def test_what_concerns_all_users_is_known_apart() -> None:
    for method, path in (("GET", "/slots"), ("POST", "/slots/0?action=save"), ("GET", "/metrics"), ("POST", "/props")):
        assert is_administrative(method, path)
    assert is_administrative("POST", "/%6Cora-adapters")
    for method, path in (("GET", "/props"), ("GET", "/lora-adapters"), ("POST", "/completion")):
        assert not is_administrative(method, path)


def test_routes_read_the_model_and_pass_the_body_on() -> None:
    for route in ROUTES:
        asked = route.read(route.example.encode(), ())
        assert f'"model": "{asked.model}"' in route.example
        assert asked.body == route.example.encode()
        if route.call is not None:
            assert route.call(asked, Facts(model=asked.model), TURN) == Call(path=route.path, body=asked.body)
        assert not is_forbidden(route.path)
    assert {route.path for route in ROUTES if not route.generates} == {
        "/tokenize",
        "/detokenize",
        "/apply-template",
        "/chat/completions/input_tokens",
        "/v1/chat/completions/input_tokens",
        "/responses/input_tokens",
        "/v1/chat/completions/control",
    }


@pytest.mark.parametrize("path", ["/completion", "/completions", "/infill"])
def test_a_client_that_used_an_alias_is_answered_by_it(path: str) -> None:
    route = next(route for route in ROUTES if route.path == path)
    assert route.call is not None
    plain, streamed = (
        route.call(route.read(json.dumps({"model": "nick", "stream": stream}).encode(), ()), Facts(model="cria"), TURN)
        for stream in (False, True)
    )

    body, stream = golden("completion.json"), golden("completion_stream.sse")

    assert (plain.path, json.loads(plain.body)["model"]) == (path, "nick")
    assert json.loads(plain.translation.whole(body, 0)) == {**json.loads(body), "model": "nick"}
    assert b'"model":"cria"' in stream
    assert streamed.translation.feed(stream, 0) + streamed.translation.end(0) == stream.replace(
        b'"model":"cria"', b'"model":"nick"'
    )
    assert b'"code":502' in streamed.translation.fail(Problem(status=502, message="gone"), 0), "llama-server's shape"


@pytest.mark.parametrize("path", ["/apply-template", "/v1/chat/completions/input_tokens", "/responses/input_tokens"])
def test_no_address_of_an_image_is_fetched_even_to_count_tokens(path: str) -> None:
    route = next(route for route in ROUTES if route.path == path)
    part = {"type": "image_url", "image_url": {"url": "http://10.0.0.1/"}}
    for field in ("messages", "input"):
        with pytest.raises(BadRequest, match="not fetched"):
            route.read(json.dumps({"model": "m", field: [{"role": "user", "content": [part]}]}).encode(), ())


@pytest.mark.parametrize("name", ["error_context", "error_infill_off", "error_not_json", "error_field_type"])
def test_llama_servers_own_errors_come_out_as_they_went_in(name: str) -> None:
    body = golden(f"{name}.json")
    given = json.loads(body)
    problem = read_error(given["error"]["code"], body, "n/m/0")
    assert json.loads(LLAMA.render_problem(problem, "")) == given


@pytest.mark.parametrize(
    ("name", "ability"), [("error_embeddings_off", "embeddings"), ("error_reranking_off", "rerank")]
)
def test_what_a_model_lacks_is_said_instead_of_how_to_start_llama_server(name: str, ability: str) -> None:
    problem = read_error(501, golden(f"{name}.json"), "node/org/model/0")
    assert problem.message.startswith(f"org/model is not made for {ability}")
    assert "Start it with" not in problem.message


@pytest.mark.parametrize(
    ("status", "message", "ability"),
    [
        (
            500,
            "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj",
            "images",
        ),
        (
            500,
            "audio input is not supported - hint: if this is unexpected, you may need to provide the mmproj",
            "audio",
        ),
        (
            500,
            "video input is not supported - hint: if this is unexpected, you may need to provide the mmproj",
            "video",
        ),
        (501, "The current model does not support audio input.", "audio"),
    ],
)
def test_sense_that_a_model_lacks_is_the_clients_mistake(status: int, message: str, ability: str) -> None:
    body = json.dumps({"error": {"code": status, "message": message, "type": "server_error"}}).encode()

    problem = read_error(status, body, "node/org/model/0")

    assert (problem.status, problem.message) == (400, f"org/model is not made for {ability}")


def test_errors_of_the_gateway_look_like_llama_servers() -> None:
    problem = Problem(status=429, message="slow down", code="rate_limit")
    assert json.loads(LLAMA.render_problem(problem, "")) == {
        "error": {"code": 429, "message": "slow down", "type": "rate_limit_error"}
    }
    event = LLAMA.render_stream_error(Problem(status=502, message="gone"), "")
    assert event == b'data: {"error":{"code":502,"message":"gone","type":"server_error"}}\n\n'

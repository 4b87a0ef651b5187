"""Requests are read and errors said as OpenAI's clients expect."""

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.golden import golden, golden_index
from llamaherd_gateway.dialects.dialect import Facts, Turn
from llamaherd_gateway.dialects.openai import OPENAI, ROUTES, read_model, render_problem, render_stream_error
from llamaherd_gateway.problems import BadRequest, UnknownModel, problem_of, read_error
from llamaherd_shared.errors import Unavailable


def refusal(body: bytes) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        read_model(body)
    return caught.value


def test_model_and_stream_are_read_and_the_rest_is_left_alone() -> None:
    def read(body: bytes) -> tuple[str, bool]:
        asked = read_model(body)
        assert asked.body == body
        return asked.model, asked.stream

    assert read(b'{"stream": true, "model": "cria", "x": {"model": "no"}}') == ("cria", True)
    assert read(b'{"model": "cria", "stream": null}') == ("cria", False)
    assert read('{"model": "modèle"}'.encode()) == ("modèle", False)


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (b"", "the body is empty at line 1 column 1 (byte 0)"),
        (b"nope", "line 1 column 1 (byte 0)"),
        (b'{"a": NaN}', "line 1 column 7 (byte 6)"),
        (b'{"a": 1,\n "b": x}', "line 2 column 7 (byte 15)"),
        ('{"é": x}'.encode(), "line 1 column 7 (byte 7)"),
        (b'{"model": "m"', "the text ends too early at line 1 column 14 (byte 13)"),
        (b'{"model": "m"} x', "trailing characters at line 1 column 16 (byte 15)"),
    ],
)
def test_broken_json_is_located(body: bytes, place: str) -> None:
    error = refusal(body)
    assert place in error.message
    assert error.code == "invalid_json"


def test_a_body_without_a_usable_model_is_refused() -> None:
    assert refusal(b'{"messages": []}').param == "model"
    assert refusal(b'{"model": null}').code == "missing_model"
    assert refusal(b'{"model": 5}').code == "invalid_model"
    assert "JSON object" in refusal(b"[1]").message


def test_deep_nesting_is_refused_not_a_crash() -> None:
    assert "nested" in refusal(b'{"a":' + b"[" * 100_000).message


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    with contextlib.suppress(BadRequest):
        assert read_model(body).model is not None


def test_errors_have_the_four_fields() -> None:
    rendered = json.loads(render_problem(problem_of(UnknownModel("no such model"))))
    assert rendered == {
        "error": {
            "message": "no such model",
            "type": "not_found_error",
            "param": "model",
            "code": "model_not_found",
        }
    }
    event = render_stream_error(problem_of(Unavailable("gone", retry_after_s=2)))
    assert event.startswith(b'data: {"error":{')
    assert event.endswith(b"\n\n")
    assert problem_of(Unavailable("gone", retry_after_s=2)).retry_after_s == 2


def test_the_context_error_of_llama_server_gets_openais_code_and_keeps_its_numbers() -> None:
    body = json.dumps(
        {"error": {"code": 400, "message": "m", "type": "exceed_context_size_error", "n_prompt_tokens": 9, "n_ctx": 8}}
    )
    error = json.loads(render_problem(read_error(400, body.encode(), "n/m/0")))["error"]
    assert error["code"] == "context_length_exceeded"
    assert error["type"] == "invalid_request_error"
    assert (error["n_prompt_tokens"], error["n_ctx"]) == (9, 8)


def test_the_gateways_own_key_being_refused_is_not_the_clients_fault() -> None:
    problem = read_error(401, b'{"error":{"message":"Invalid API Key","code":401}}', "n/m/0")
    assert problem.status == 502
    assert "secret_file" in problem.message


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"error": "text"}', b'{"error": {}}', b"\xff"])
def test_an_error_in_no_known_shape_is_quoted(body: bytes) -> None:
    assert read_error(500, body, "n/m/0").message.startswith("llama-server answered 500")


@pytest.mark.parametrize(
    "file", ["error_embeddings_off.json", "error_infill_off.json", "error_transcription_off.json", "error_image.json"]
)
def test_what_this_model_cannot_do_is_not_worth_a_second_try(file: str) -> None:
    problem = read_error(golden_index()[file]["status"], golden(file), "n/m/0")
    assert OPENAI.status_of(problem) == 400
    assert json.loads(render_problem(problem))["error"]["type"] == "invalid_request_error"


WORDS = st.sampled_from(
    ["function", "message", "reasoning", "input_text", "json_schema", "auto", "required", "allowed_tools", "name", ""]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | WORDS,
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                [
                    "type",
                    "name",
                    "function",
                    "tools",
                    "mode",
                    "allowed_tools",
                    "format",
                    "content",
                    "text",
                    "role",
                    "effort",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=6,
)
FIELDS = {
    "/v1/chat/completions": (
        {"messages": [{"role": "user", "content": "x"}]},
        ("messages", "tools", "tool_choice", "functions", "function_call", "n", "logprobs", "top_logprobs", "stop"),
    ),
    "/v1/completions": (
        {"prompt": "x"},
        ("prompt", "suffix", "echo", "n", "best_of", "logprobs", "stop", "stream", "stream_options"),
    ),
    "/v1/embeddings": ({"input": "x"}, ("input", "dimensions", "encoding_format")),
    "/v1/responses": (
        {"input": "x"},
        (
            "input",
            "include",
            "text",
            "reasoning",
            "instructions",
            "max_output_tokens",
            "tools",
            "tool_choice",
            "stream",
        ),
    ),
}
"""Route -> a body that will do, and the fields that are looked at."""


@settings(max_examples=100)
@given(st.data())
def test_any_values_are_read_or_refused(data: st.DataObject) -> None:
    route = data.draw(st.sampled_from([route for route in ROUTES if route.path in FIELDS]))
    body, names = FIELDS[route.path]
    body = {"model": "m", **body, **data.draw(st.dictionaries(st.sampled_from(names), VALUES, max_size=3))}
    with contextlib.suppress(BadRequest):
        asked = route.read(json.dumps(body).encode(), ())
        assert route.call is not None
        route.call(asked, Facts(model="m"), Turn(request_id="a", received_ns=0))

"""Errors in Anthropic's envelope, with its types and statuses."""

import json
from pathlib import Path
from typing import Any

import pytest

from llamaherd_gateway.dialects.anthropic import ANTHROPIC
from llamaherd_gateway.problems import Problem, UnknownModel, problem_of, read_error
from llamaherd_shared.errors import Unavailable

GOLDEN = Path(__file__).parents[2] / "golden" / "llama_server"


def rendered(problem: Problem) -> Any:
    return json.loads(ANTHROPIC.render_problem(problem, "7f"))


@pytest.mark.parametrize(
    ("status", "public", "kind"),
    [
        (400, 400, "invalid_request_error"),
        (401, 401, "authentication_error"),
        (403, 403, "permission_error"),
        (404, 404, "not_found_error"),
        (405, 405, "invalid_request_error"),
        (413, 413, "request_too_large"),
        (429, 429, "rate_limit_error"),
        (500, 500, "api_error"),
        (501, 400, "invalid_request_error"),
        (502, 502, "api_error"),
        (503, 529, "overloaded_error"),
        (504, 504, "timeout_error"),
    ],
)
def test_each_status_has_anthropics_number_and_type(status: int, public: int, kind: str) -> None:
    problem = Problem(status=status, message="So it is.")

    assert ANTHROPIC.status_of(problem) == public
    assert rendered(problem) == {
        "type": "error",
        "error": {"type": kind, "message": "So it is."},
        "request_id": "req_7f",
    }


def test_every_answer_carries_the_requests_id() -> None:
    assert ANTHROPIC.headers is not None
    assert list(ANTHROPIC.headers("7f")) == [(b"request-id", b"req_7f")]


def test_an_error_in_a_stream_is_an_event_named_error() -> None:
    event = ANTHROPIC.render_stream_error(Problem(status=503, message="gone"), "7f")

    head, data, *rest = event.decode().split("\n")
    assert (head, rest) == ("event: error", ["", ""])
    assert json.loads(data.removeprefix("data: "))["error"]["type"] == "overloaded_error"


def test_a_prompt_that_is_too_long_is_said_in_the_words_that_agents_look_for() -> None:
    problem = read_error(400, (GOLDEN / "error_context.json").read_bytes(), "here/m/0")

    error = rendered(problem)["error"]
    said = json.loads((GOLDEN / "error_context.json").read_bytes())["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"] == f"prompt is too long: {said['n_prompt_tokens']} tokens > {said['n_ctx']} maximum"


def test_the_herds_own_failures_keep_their_sentences() -> None:
    assert rendered(problem_of(UnknownModel("no model m")))["error"] == {
        "type": "not_found_error",
        "message": "no model m",
    }
    assert ANTHROPIC.status_of(problem_of(Unavailable("busy", retry_after_s=2))) == 529

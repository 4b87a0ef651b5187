"""Errors in OpenAI's words."""

from typing import Any, Final

import msgspec

from llamaherd_gateway.dialects.dialect import Dialect
from llamaherd_gateway.problems import Problem, read_error

_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    409: "conflict_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
}
"""OpenAI's error type by HTTP status; every 5xx is a `server_error`."""


def status_of(problem: Problem) -> int:
    """What this llama-server cannot do (its 501) is the client's to change: clients repeat every 5xx."""
    return 400 if problem.status == 501 else problem.status


def render_problem(problem: Problem, request_id: str = "") -> bytes:
    """`{"error": {message, type, param, code}}`"""
    return msgspec.json.encode(
        {
            "error": {
                "message": problem.message,
                "type": _TYPES.get(status_of(problem), "server_error"),
                "param": problem.param,
                "code": problem.code,
                **problem.extra,
            }
        }
    )


def render_stream_error(problem: Problem, request_id: str = "") -> bytes:
    """The event that ends a stream which cannot go on; no `[DONE]` follows."""
    return b"data: " + render_problem(problem) + b"\n\n"


def problem_in(event: bytes, content: Any) -> Problem | None:
    """The error that llama-server reports in the middle of a stream, if this event of it is one."""
    error = content.get("error") if isinstance(content, dict) else None
    if not error:
        return None
    status = error.get("code") if isinstance(error, dict) else None
    return read_error(status if isinstance(status, int) else 500, event, "llama-server")


OPENAI: Final = Dialect(
    name="openai", render_problem=render_problem, render_stream_error=render_stream_error, status_of=status_of
)

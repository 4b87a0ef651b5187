"""Anthropic's errors: `{"type": "error", "error": {type, message}, "request_id"}`, and its own statuses."""

from collections.abc import Sequence
from typing import Final

import msgspec

from llamaherd_gateway.dialects.dialect import Dialect, Header
from llamaherd_gateway.problems import Problem

OVERLOADED: Final = 529

_STATUSES: Final = {501: 400, 503: OVERLOADED}
"""Where Anthropic's status is another: what cannot be served is the caller's mistake, and busy has its own number."""

_TYPES: Final = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    OVERLOADED: "overloaded_error",
}
"""By Anthropic's status; every other 4xx is an `invalid_request_error`, every other 5xx an `api_error`."""


def status_of(problem: Problem) -> int:
    """HTTP status of an error answer."""
    return _STATUSES.get(problem.status, problem.status)


def render_problem(problem: Problem, request_id: str = "") -> bytes:
    """The body of an error answer."""
    status = status_of(problem)
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    error = {"type": kind, "message": _message(problem)}
    return msgspec.json.encode({"type": "error", "error": error, "request_id": _public_id(request_id)})


def render_stream_error(problem: Problem, request_id: str = "") -> bytes:
    """The event that ends a stream which cannot go on."""
    return b"event: error\ndata: %b\n\n" % render_problem(problem, request_id)


def _message(problem: Problem) -> str:
    """The problem's own; of a prompt that is too long, in the words that coding agents look for to compact it."""
    tokens, limit = problem.extra.get("n_prompt_tokens"), problem.extra.get("n_ctx")
    if problem.code == "context_length_exceeded" and tokens is not None and limit is not None:
        return f"prompt is too long: {tokens} tokens > {limit} maximum"
    return problem.message


def _public_id(request_id: str) -> str:
    return f"req_{request_id}"


def _headers(request_id: str) -> Sequence[Header]:
    return ((b"request-id", _public_id(request_id).encode()),)


ANTHROPIC: Final = Dialect(
    name="anthropic",
    render_problem=render_problem,
    render_stream_error=render_stream_error,
    status_of=status_of,
    headers=_headers,
)

"""LM Studio's two ways of saying an error: v1's own, and OpenAI's for v0 (reference: api-dialects, 1.5)."""

from typing import Any, Final

import msgspec

from llamaherd_gateway.dialects import openai
from llamaherd_gateway.dialects.dialect import Dialect
from llamaherd_gateway.dialects.sse import render_event
from llamaherd_gateway.problems import Problem

_TYPES: Final = frozenset({"not_implemented", "model_not_found", "job_not_found"})
"""Codes of ours that are types of LM Studio's."""

_CODES: Final = {"missing_model": "missing_required_parameter"}
"""Our code -> LM Studio's, where it has one."""


def describe_problem(problem: Problem) -> dict[str, Any]:
    """`{type, message, code?, param?}`"""
    code = problem.code
    if code in _TYPES:
        kind, code = code, None
    elif problem.status == 501:
        kind = "not_implemented"
    else:
        kind = "invalid_request" if problem.status < 500 else "internal_error"
    error: dict[str, Any] = {"type": kind, "message": problem.message}
    if code is not None:
        error["code"] = _CODES.get(code, code)
    if problem.param is not None:
        error["param"] = problem.param
    return error


def render_problem(problem: Problem, request_id: str = "") -> bytes:
    """`{"error": {...}}`"""
    return msgspec.json.encode({"error": describe_problem(problem)})


def render_error_event(problem: Problem) -> bytes:
    """The event that tells of an error in a stream; `chat.end` still follows it."""
    return render_event({"type": "error", "error": describe_problem(problem)}, "error")


def render_stream_error(problem: Problem, request_id: str = "") -> bytes:
    """A whole stream of its own, for a request that fails before it is known which model answers it."""
    stats = {
        "input_tokens": 0,
        "total_output_tokens": 0,
        "reasoning_output_tokens": 0,
        "tokens_per_second": 0.0,
        "time_to_first_token_seconds": 0.0,
    }
    result = {"model_instance_id": "", "output": [], "stats": stats}
    start = render_event({"type": "chat.start", "model_instance_id": ""}, "chat.start")
    return start + render_error_event(problem) + render_event({"type": "chat.end", "result": result}, "chat.end")


LMSTUDIO: Final = Dialect(name="lmstudio", render_problem=render_problem, render_stream_error=render_stream_error)
LMSTUDIO_V0: Final = Dialect(
    name="lmstudio",
    render_problem=openai.render_problem,
    render_stream_error=openai.render_stream_error,
    status_of=openai.OPENAI.status_of,
)

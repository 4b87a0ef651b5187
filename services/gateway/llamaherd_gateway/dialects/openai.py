"""OpenAI's dialect: reading a request's model, rendering errors and lists (reference: api-dialects, 1.5 and 3)."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from llamaherd_gateway.bodies import decode_body, model_of
from llamaherd_gateway.dialects.dialect import Asked, Dialect, Header
from llamaherd_gateway.problems import Problem
from llamaherd_gateway.projection import Fleet
from llamaherd_gateway.routing import Table

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
    429: "rate_limit_error",
    431: "invalid_request_error",
}
"""OpenAI's error type by HTTP status; every 5xx is a `server_error`."""


class _Body(msgspec.Struct):
    model: Any = None
    stream: Any = None


_DECODER: Final = msgspec.json.Decoder(_Body)


def read_model(body: bytes, headers: Sequence[Header] = ()) -> Asked:
    """The model and whether a stream is wanted; llama-server judges the rest. Raises `BadRequest`."""
    read = decode_body(_DECODER, body)
    return Asked(model=model_of(read.model), stream=read.stream is True, body=body)


def render_problem(problem: Problem, request_id: str = "") -> bytes:
    """`{"error": {message, type, param, code}}`"""
    return msgspec.json.encode(
        {
            "error": {
                "message": problem.message,
                "type": _TYPES.get(problem.status, "server_error"),
                "param": problem.param,
                "code": problem.code,
                **problem.extra,
            }
        }
    )


def render_stream_error(problem: Problem, request_id: str = "") -> bytes:
    """The event that ends a stream which cannot go on; no `[DONE]` follows."""
    return b"data: " + render_problem(problem) + b"\n\n"


def render_models(fleet: Fleet, table: Table) -> list[dict[str, Any]]:
    """`GET /v1/models`: what can be asked for, loaded or not."""
    created = {model.model: model.modified_ns // 1_000_000_000 for model in fleet.models.values()}
    return [
        {"id": name, "object": "model", "created": created.get(name, 0), "owned_by": "llamaherd"}
        for name in table.known
    ]


OPENAI: Final = Dialect(name="openai", render_problem=render_problem, render_stream_error=render_stream_error)

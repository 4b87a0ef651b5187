"""OpenAI's dialect: reading a request's model, rendering errors and lists (reference: api-dialects, 1.5 and 3)."""

import json
from typing import Any, Final

import msgspec

from llamaherd_gateway.projection import Fleet
from llamaherd_gateway.routing import Table, UnknownModel
from llamaherd_shared.errors import HerdError, NotFound, Rejected, Unavailable, http_status

ERROR_BODY_BYTES: Final = 64 * 1024
"""How much of a llama-server's error is read to translate it."""

RELOCATED_BYTES: Final = 2**20
"""A broken body larger than this is not read a second time to locate the mistake."""

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

_CODES: Final = {"exceed_context_size_error": "context_length_exceeded"}
"""llama-server's error type -> OpenAI's code. Its own `code` is a number: the status once more."""


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """An answer that is an error."""

    status: int
    message: str
    """Sentences for a person."""
    code: str | None = None
    """For a program, e.g. `model_not_found`."""
    param: str | None = None
    """Field of the request that is wrong."""
    retry_after_s: float | None = None
    extra: dict[str, Any] = {}
    """Further fields that llama-server gave, e.g. `n_ctx`."""


class BadRequest(Rejected):
    """The body cannot be served."""

    def __init__(self, message: str, *, status: int = 400, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param


class Asked(msgspec.Struct, frozen=True):
    """What the gateway needs to know of a request's body; llama-server judges the rest."""

    model: str
    stream: bool


class _Body(msgspec.Struct):
    model: Any = None
    stream: Any = None


_DECODER: Final = msgspec.json.Decoder(_Body)


def parse_request(body: bytes) -> Asked:
    """Raises `BadRequest` with the place of the mistake."""
    try:
        asked = _DECODER.decode(body)
    except msgspec.ValidationError as error:
        raise BadRequest('the request\'s body must be a JSON object like {"model": "...", ...}') from error
    except msgspec.DecodeError as error:
        raise BadRequest(_describe(body, str(error)), code="invalid_json") from error
    except UnicodeDecodeError as error:
        raise BadRequest(f"the request's body is not UTF-8 (byte {error.start})", code="invalid_json") from error
    except RecursionError as error:
        raise BadRequest("the request's body is nested too deeply", code="invalid_json") from error
    model = asked.model
    if model is None:
        raise BadRequest("the request names no model: set `model`", param="model", code="missing_model")
    if not isinstance(model, str):
        raise BadRequest("`model` must be a string", param="model", code="invalid_model")
    return Asked(model, asked.stream is True)


def _describe(body: bytes, error: str) -> str:
    """What is wrong, with line and column (from 1) and byte (from 0) of the first mistake."""
    text, _, position = error.partition(" (byte ")
    if not position:
        at = len(body)
        text = "the text ends too early" if body.strip() else "the body is empty"
    else:
        # msgspec's position may be behind the mistake; the standard library's is exact, and slower.
        at = _exact_position(body, int(position.rstrip(")")))
    text = text.removeprefix("JSON is malformed: ")
    before = body[:at]
    line = before.count(b"\n") + 1
    column = len(before.rpartition(b"\n")[2].decode("utf-8", "replace")) + 1
    return f"the request's body is not valid JSON: {text} at line {line} column {column} (byte {at})"


def _exact_position(body: bytes, near: int) -> int:
    if len(body) > RELOCATED_BYTES:
        return near
    try:
        json.loads(body.decode())
    except json.JSONDecodeError as error:
        return len(error.doc[: error.pos].encode())
    except UnicodeDecodeError as error:
        return error.start
    except RecursionError:
        pass
    return near  # something that only the standard library takes for JSON, such as NaN


def problem_of(error: HerdError) -> Problem:
    """The answer to an expected failure."""
    status = http_status(error)
    match error:
        case BadRequest():
            return Problem(status=error.status, message=error.message, code=error.code, param=error.param)
        case UnknownModel():
            return Problem(status=404, message=error.message, code="model_not_found", param="model")
        case NotFound():
            return Problem(status=404, message=error.message, code="not_found")
        case Unavailable():
            return Problem(status=503, message=error.message, code="unavailable", retry_after_s=error.retry_after_s)
        case _:
            return Problem(status=status, message=error.message, code=error.kind)


def render_problem(problem: Problem) -> bytes:
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


def render_stream_error(problem: Problem) -> bytes:
    """The event that ends a stream which cannot go on; no `[DONE]` follows."""
    return b"data: " + render_problem(problem) + b"\n\n"


def translate_error(status: int, body: bytes, instance: str) -> Problem:
    """A llama-server's error answer in OpenAI's words."""
    try:
        error = msgspec.json.decode(body)["error"]
        message, kind = str(error["message"]), str(error.get("type", ""))
        extra = {key: error[key] for key in ("n_prompt_tokens", "n_ctx") if key in error}
    except (msgspec.MsgspecError, KeyError, TypeError, AttributeError):
        said = body[:200].decode("utf-8", "replace").strip()
        message, kind, extra = f"llama-server answered {status}" + (f": {said}" if said else ""), "", {}
    if status == 401:
        # The client's own key never reaches a llama-server: this one is ours.
        text = f"{instance} does not accept the gateway's key: supervisor and gateway must share one `secret_file`"
        return Problem(status=502, message=text, code="upstream_key")
    retry_after_s = 1.0 if status == 503 else None
    return Problem(status=status, message=message, code=_CODES.get(kind), retry_after_s=retry_after_s, extra=extra)


def render_models(fleet: Fleet, table: Table) -> list[dict[str, Any]]:
    """`GET /v1/models`: what can be asked for, loaded or not."""
    created = {model.model: model.modified_ns // 1_000_000_000 for model in fleet.models.values()}
    return [
        {"id": name, "object": "model", "created": created.get(name, 0), "owned_by": "llamaherd"}
        for name in table.known
    ]

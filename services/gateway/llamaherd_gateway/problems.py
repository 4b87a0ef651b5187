"""What can go wrong with a request, before it is put into a dialect's words."""

from typing import Any, Final

import msgspec

from llamaherd_shared.errors import HerdError, NotFound, Rejected, Unavailable, http_status

ERROR_BODY_BYTES: Final = 64 * 1024
"""How much of a llama-server's error is read to translate it."""

STATUSES: Final = {
    400: "the request cannot be served as it is; `param` names the field",
    401: "no good key",
    403: "not for this key, not from this host or page",
    404: "no such model, file, download or path",
    405: "not with this method",
    408: "the rest of the request did not come (`gateway.receive_timeout_s`)",
    409: "what is to be changed is something else's as well, or was changed meanwhile",
    413: "the body is larger than `gateway.max_body_bytes`, or than 1 MiB where no model answers",
    415: "it is packed with something else than gzip or deflate, or is no form",
    429: "a limit of the key; `Retry-After` says when",
    431: "the head is larger than `gateway.max_head_bytes`",
    500: "llama-server failed at it, or the gateway; its log has the details",
    501: "this model's llama-server cannot do it (OpenAI, Anthropic, Ollama: 400, as their clients repeat a 5xx)",
    502: "a llama-server broke off before its first byte, twice",
    503: "the model cannot be loaded, with the last lines of its log; the queue is full (Anthropic: 529)",
    504: "a llama-server was silent for `gateway.answer_timeout_s`",
}
"""Of error answers -> when."""

_CODES: Final = {"exceed_context_size_error": "context_length_exceeded"}
"""llama-server's error type -> OpenAI's code. Its own `code` is a number: the status once more."""

_ABILITIES: Final = {
    "does not support embeddings": "embeddings",
    "does not support reranking": "reranking",
    "does not support audio input": "audio",
    "audio input is not supported": "audio",
    "image input is not supported": "images",
    "video input is not supported": "video",
}
"""llama-server tells how it should have been started, which is nothing a client can do -> what the model lacks."""

_CLIENT_ERRORS: Final = ("is too large to process",)
"""llama-server answers 500 to these, and they are the client's to mend (api-dialects, trap 15)."""


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """An answer that is an error, in nobody's dialect yet."""

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


class UnknownModel(NotFound):
    """No node has a file for this name, and no alias means one."""


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
            code = getattr(error, "code", "unavailable")
            return Problem(status=503, message=error.message, code=code, retry_after_s=error.retry_after_s)
        case _:
            return Problem(status=status, message=error.message, code=error.kind)


def late_body(timeout_s: float) -> Problem:
    """A client that began a request and does not go on."""
    text = f"the rest of the request did not arrive within {timeout_s:g} s (`gateway.receive_timeout_s`)"
    return Problem(status=408, message=text, code="request_timeout")


def headers_of(problem: Problem) -> list[tuple[bytes, bytes]]:
    """Headers that an answer with this error carries, in every dialect."""
    headers = []
    if problem.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if problem.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, round(problem.retry_after_s))))
    return headers


def read_error(status: int, body: bytes, instance: str) -> Problem:
    """What a llama-server's error answer says."""
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
    for sign, ability in _ABILITIES.items():
        if sign in message:
            model = instance.partition("/")[2].rpartition("/")[0] or "this model"
            return Problem(
                status=400, message=f"{model} is not made for {ability}", code="not_supported", param="model"
            )
    if status == 500 and any(sign in message for sign in _CLIENT_ERRORS):
        status = 400
    retry_after_s = 1.0 if status == 503 else None
    return Problem(status=status, message=message, code=_CODES.get(kind), retry_after_s=retry_after_s, extra=extra)

"""llama-server's own API, per model: what passes, what never does, and which model is meant (api-dialects, 7)."""

from collections.abc import Callable, Collection, Sequence
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, unquote_to_bytes, urlencode

import msgspec

from llamaherd_gateway.bodies import decode_body
from llamaherd_gateway.dialects.dialect import EVENTS, JSON, Asked, Call, Dialect, Facts, Header, Route, Turn
from llamaherd_gateway.dialects.openai import Renamed, read_model, refuse_remote_media
from llamaherd_gateway.problems import Problem

UPSTREAM: Final = b"/upstream/"
"""`/upstream/<model>/...`: the rest of the path goes to the model's llama-server."""

CONTROL: Final = "/v1/chat/completions/control"
"""Ends the thinking of the answer with an `id`."""

NAME_SEGMENTS: Final = 8
"""No model's name has more of them: a path of ten thousand slashes must not be tried out."""


class Look(msgspec.Struct, frozen=True):
    """A GET route that names its model in the query: `/props?model=cria`."""

    about: str
    gives: str = JSON
    """Content type."""


LOOKS: Final = {
    "/props": Look("Settings, chat template and abilities of a loaded model"),
    "/slots": Look("What each slot is doing"),
    "/metrics": Look("llama-server's counters, for Prometheus", "text/plain"),
    "/lora-adapters": Look("LoRA adapters and their scales"),
}
ABOUT_UPSTREAM: Final = "Everything else of a model's llama-server, as it stands"

_PASSIVE: Final = frozenset({*LOOKS, "/health", "/v1/health", "/models", "/v1/models"})

_NEVER: Final = (
    "/tools",  # reads and writes files
    "/cors-proxy",  # fetches any address
    "/models",  # a router's: loading and unloading is the herd's business
    "/v1/stream",  # generations that outlive their client, under ids of all users in one space
    "/v1/streams",
)

_ADMINISTRATIVE: Final = frozenset({"/props", "/lora-adapters", "/slots", "/metrics"})

_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    501: "not_supported_error",
    503: "unavailable_error",
}
"""llama-server's error type by HTTP status; 429 is none of its own."""


def render_problem(problem: Problem, request_id: str = "") -> bytes:
    """`{"error": {code, message, type}}`: `code` is the status."""
    kind = _TYPES.get(problem.status) or ("invalid_request_error" if problem.status < 500 else "server_error")
    if problem.code == "context_length_exceeded":
        kind = "exceed_context_size_error"
    error: dict[str, Any] = {"code": problem.status, "message": problem.message, "type": kind, **problem.extra}
    return msgspec.json.encode({"error": error})


def render_stream_error(problem: Problem, request_id: str = "") -> bytes:
    """The event that ends a stream which cannot go on."""
    return b"data: %b\n\n" % render_problem(problem)


LLAMA: Final = Dialect(name="llama", render_problem=render_problem, render_stream_error=render_stream_error)


class _Conversation(msgspec.Struct):
    messages: Any = None
    input: Any = None


class _Control(msgspec.Struct):
    id: Any = None


_CONVERSATION: Final = msgspec.json.Decoder(_Conversation)
_WORD: Final = msgspec.json.Decoder(_Control)


def read_conversation(body: bytes, headers: Sequence[Header] = ()) -> Asked:
    """Like `read_model`, for a body with a chat in it. Raises `BadRequest`."""
    asked = read_model(body)
    refuse_addresses(body)
    return asked


def read_control(body: bytes, headers: Sequence[Header] = ()) -> Asked:
    """A word about an answer under way, which only the instance that gives it understands. Raises `BadRequest`."""
    return msgspec.structs.replace(read_model(body), answer_id=answer_id_of(body))


def answer_id_of(body: bytes) -> str:
    """Of a body for `CONTROL`; empty when it names none. Raises `BadRequest`."""
    wanted = decode_body(_WORD, body).id
    return wanted if isinstance(wanted, str) else ""


def refuse_addresses(body: bytes) -> None:
    """Raises `BadRequest` for a chat with an image's address: llama-server would fetch it, even to count tokens.

    To be asked of every body that goes to a llama-server without a dialect's own reading.
    """
    read = decode_body(_CONVERSATION, body)
    for messages in (read.messages, read.input):
        if isinstance(messages, list):
            refuse_remote_media([{"content": _parts(message)} for message in messages])


def _parts(message: Any) -> list[Any]:
    content = message.get("content") if isinstance(message, dict) else None
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []


def _call_by_name(path: str) -> Callable[[Asked, Facts, Turn], Call]:
    """`Route.call` where llama-server's answer names the model: a client that used an alias is answered by that."""

    def call(asked: Asked, facts: Facts, turn: Turn) -> Call:
        renamed = Renamed(facts.model, asked.model, stream=asked.stream, dialect=LLAMA)
        return Call(path=path, body=asked.body, translation=renamed if asked.model != facts.model else None)

    return call


def _completion(path: str, about: str, example: str) -> Route:
    """A route that generates text, as a stream when asked to."""
    return Route(
        path=path,
        dialect=LLAMA,
        read=read_model,
        call=_call_by_name(path),
        gives=(JSON, EVENTS),
        about=about,
        example=example,
    )


def _route(path: str, about: str, example: str, *, generates: bool = True, example_status: int = 200) -> Route:
    return Route(
        path=path,
        dialect=LLAMA,
        read=read_model,
        generates=generates,
        about=about,
        example=example,
        example_status=example_status,
    )


def _counts(path: str, about: str, example: str) -> Route:
    """A route that reads a chat, and generates nothing."""
    return Route(path=path, dialect=LLAMA, read=read_conversation, generates=False, about=about, example=example)


_COMPLETION: Final = '{"model": "cria", "prompt": "Llamas are", "n_predict": 8}'
_MESSAGES: Final = '{"model": "cria", "messages": [{"role": "user", "content": "Hello"}]}'
_INPUT: Final = '{"model": "cria", "input": "Hello"}'
_GAP: Final = '{"model": "coder", "input_prefix": "def add(a, b):\\n", "input_suffix": "\\n", "n_predict": 8}'
_EMBEDDING: Final = '{"model": "embedder", "content": "llamas"}'
_QUESTIONS: Final = (
    '{"model": "decider", "state": "It rains.", "questions": {"wet": {"type": "noul", "instructions": "Is it wet?"}}}'
)
_CONTROL: Final = '{"model": "cria", "id": "chatcmpl-1", "action": "reasoning_end"}'

ROUTES: Final = (
    _completion("/completion", "llama-server's own text completion", _COMPLETION),
    _completion("/completions", "The same as /completion", _COMPLETION),
    _completion("/infill", "Fill in the middle, for a model with the tokens for it", _GAP),
    _route("/tokenize", "Text to tokens", '{"model": "cria", "content": "Hello"}', generates=False),
    _route("/detokenize", "Tokens to text", '{"model": "cria", "tokens": [42, 355]}', generates=False),
    _counts("/apply-template", "A chat as the text that the model reads", _MESSAGES),
    _route("/embedding", "llama-server's own embeddings, for a model that was loaded for embedding", _EMBEDDING),
    _route("/embeddings", "The same as /embedding", _EMBEDDING),
    _route("/v1/systemone", "Typed decisions, for a model made for them", _QUESTIONS, example_status=501),
    _counts("/chat/completions/input_tokens", "How many tokens a chat has", _MESSAGES),
    _counts("/v1/chat/completions/input_tokens", "How many tokens a chat has", _MESSAGES),
    _counts("/responses/input_tokens", "How many tokens a response's input has", _INPUT),
    Route(
        path=CONTROL,
        dialect=LLAMA,
        read=read_control,
        generates=False,
        about="Ends the thinking of a chat that is under way",
        example=_CONTROL,
    ),
)


def split_upstream(target: bytes, known: Collection[str]) -> tuple[str, bytes] | None:
    """Model and the rest of an `/upstream/...` target, as it was written; `None` for any other target.

    The longest of the `known` names that the path begins with is meant; when it begins with none of them, the first
    segment is returned as the model, for the error to name.
    """
    path, mark, query = target.partition(b"?")
    if not path.startswith(UPSTREAM):
        return None
    segments = path[len(UPSTREAM) :].split(b"/")
    names = [unquote_to_bytes(segment).decode("utf-8", "replace") for segment in segments[:NAME_SEGMENTS]]
    taken, name = 1, names[0]
    for count in range(len(names), 0, -1):
        joined = "/".join(names[:count])
        if joined in known:
            taken, name = count, joined
            break
    return name, b"/" + b"/".join(segments[taken:]) + mark + query


def split_query(target: bytes) -> tuple[str | None, bytes]:
    """Model of `/props?model=cria`, and the target without it; `None` when none is named."""
    path, mark, query = target.partition(b"?")
    if not mark:
        return None, target
    pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True, encoding="utf-8", errors="replace")
    model = next((value for name, value in pairs if name == "model"), None)
    rest = urlencode([pair for pair in pairs if pair[0] != "model"])
    return model, path + b"?" + rest.encode() if rest else path


def is_passive(method: str, path: str | bytes) -> bool:
    """Whether a request only looks: it never loads a model, nor wakes one, nor keeps it loaded."""
    return method in ("GET", "HEAD") and any(form in _PASSIVE for form in _forms(path))


def is_forbidden(path: str | bytes) -> bool:
    """Whether a path of llama-server's never passes, however it is written."""
    return any(_is_below(form, root) for form in _forms(path) for root in _NEVER)


def is_administrative(method: str, path: str | bytes) -> bool:
    """Whether a request shows or changes what belongs to all users of a model."""
    forms = _forms(path)
    if method in ("GET", "HEAD"):
        return any(_is_below(form, root) for form in forms for root in ("/slots", "/metrics"))
    return any(_is_below(form, root) for form in forms for root in _ADMINISTRATIVE)


def _is_below(path: str, root: str) -> bool:
    return path == root or path.startswith(root + "/")


def _forms(path: str | bytes) -> tuple[str, str]:
    """The path (without query) as llama-server reads it, and as a cleverer server would.

    llama-server decodes percent signs and compares the rest as it is; a proxy between may do more.
    """
    text = path.decode("latin-1") if isinstance(path, bytes) else path
    read = unquote(text.partition("?")[0])
    cleaned: list[str] = []
    for segment in unquote(read).replace("\\", "/").lower().split("/"):
        if segment == "..":
            del cleaned[-1:]
        elif segment not in ("", "."):
            cleaned.append(segment.partition(";")[0].rstrip(". "))
    return read, "/" + "/".join(cleaned)

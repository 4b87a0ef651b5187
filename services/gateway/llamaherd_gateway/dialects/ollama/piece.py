"""What one event of a stream, or one plain answer, of llama-server says (reference: api-dialects, 2.4)."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

_IMPOSSIBLE: Final = -9999.0
"""Of a token with probability zero: JSON has no minus infinity, and llama-server writes null."""


class Timings(msgspec.Struct):
    """Counts and times of one request."""

    cache_n: int = 0
    """Prompt tokens found in the cache; `prompt_n` were not."""
    prompt_n: int = 0
    prompt_ms: float | None = None
    predicted_n: int = 0
    predicted_ms: float | None = None

    @property
    def prompt_tokens(self) -> int:
        return self.cache_n + self.prompt_n

    @property
    def prompt_ns(self) -> int:
        return round((self.prompt_ms or 0) * 1e6)

    @property
    def predicted_ns(self) -> int:
        return round((self.predicted_ms or 0) * 1e6)


class _Likely(msgspec.Struct, omit_defaults=True):
    token: str
    logprob: float | None = None
    bytes: list[int] | None = None


class Logprob(_Likely, omit_defaults=True):
    """A token that was said, and, when wanted, those that might have been."""

    top_logprobs: list[_Likely] = []


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _CallPiece(msgspec.Struct):
    index: int = 0
    id: str | None = None
    function: _Function | None = None


class Piece(msgspec.Struct):
    """What was said."""

    content: str = ""
    thinking: str = ""
    tool_calls: Sequence[_CallPiece] = ()
    logprobs: list[Logprob] = []
    reason: str = ""
    """Why it ended, in OpenAI's words; empty while it goes on."""
    timings: Timings | None = None
    last: bool = False
    """Whether nothing follows."""
    error: str = ""
    """llama-server's, when there is one: then nothing else counts."""


class ToolCalls:
    """Puts the pieces of tool calls together."""

    def __init__(self) -> None:
        self._calls: dict[int, dict[str, str]] = {}

    def add(self, pieces: Sequence[_CallPiece]) -> None:
        for piece in pieces:
            call = self._calls.setdefault(piece.index, {"id": "", "name": "", "arguments": ""})
            call["id"] += piece.id or ""
            if piece.function is not None:
                call["name"] += piece.function.name or ""
                call["arguments"] += piece.function.arguments or ""

    def whole(self) -> list[dict[str, Any]]:
        """Ollama's form: arguments are an object. Raises `ValueError` when what the model wrote is none."""
        rendered = []
        for index, call in sorted(self._calls.items()):
            function = {"index": index, "name": call["name"], "arguments": _read_arguments(call)}
            rendered.append({"id": call["id"], "function": function} if call["id"] else {"function": function})
        return rendered


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_CallPiece] | None = None


class _Probabilities(msgspec.Struct):
    content: list[Logprob] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    message: _Delta | None = None
    finish_reason: str | None = None
    logprobs: _Probabilities | None = None


class _Chat(msgspec.Struct):
    choices: list[_Choice] = []
    timings: Timings | None = None
    error: Any = None


class _Text(msgspec.Struct):
    content: str = ""
    stop: bool = False
    stop_type: str = ""
    completion_probabilities: list[Logprob] | None = None
    timings: Timings | None = None
    error: Any = None


_CHAT: Final = msgspec.json.Decoder(_Chat)
_TEXT: Final = msgspec.json.Decoder(_Text)
_ARGUMENTS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def read_chat_piece(data: bytes) -> Piece:
    """Of /v1/chat/completions. Raises `ValueError`."""
    read = _CHAT.decode(data)
    piece = Piece(timings=read.timings, error=_describe(read.error))
    if not read.choices:
        return piece
    choice = read.choices[0]
    said = choice.delta or choice.message or _Delta()
    piece.content, piece.thinking = said.content or "", said.reasoning_content or ""
    # A plain answer's calls have no index: their order is it.
    piece.tool_calls = said.tool_calls or ()
    if choice.message is not None:
        for index, call in enumerate(piece.tool_calls):
            call.index = index
    piece.reason = choice.finish_reason or ""
    if choice.logprobs is not None:
        piece.logprobs = _possible(choice.logprobs.content)
    return piece


def read_text_piece(data: bytes) -> Piece:
    """Of /completion and /infill. Raises `ValueError`."""
    read = _TEXT.decode(data)
    return Piece(
        content=read.content,
        logprobs=_possible(read.completion_probabilities),
        reason="" if not read.stop else "length" if read.stop_type == "limit" else "stop",
        timings=read.timings,
        last=read.stop,
        error=_describe(read.error),
    )


def _possible(tokens: list[Logprob] | None) -> list[Logprob]:
    for token in tokens or ():
        for likely in (token, *token.top_logprobs):
            if likely.logprob is None:
                likely.logprob = _IMPOSSIBLE
    return tokens or []


def _describe(error: Any) -> str:
    if not error:
        return ""
    return str(error.get("message") or error) if isinstance(error, dict) else str(error)


def _read_arguments(call: dict[str, str]) -> dict[str, msgspec.Raw]:
    if not call["arguments"].strip():
        return {}
    try:
        return _ARGUMENTS.decode(call["arguments"])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the model called the tool {call['name']!r} with arguments that are no object") from error

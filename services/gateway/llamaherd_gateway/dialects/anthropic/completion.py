"""llama-server's chat completion, plain or a chunk of a stream, as far as a message is made of it."""

from typing import Any, Final

import msgspec


class Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class ToolCall(msgspec.Struct):
    function: Function = msgspec.field(default_factory=Function)
    index: int = 0
    id: str | None = None


class Said(msgspec.Struct):
    """A `message`, or the `delta` of one."""

    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None


class Choice(msgspec.Struct):
    delta: Said | None = None
    message: Said | None = None
    finish_reason: str | None = None


class Details(msgspec.Struct):
    cached_tokens: int = 0


class Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: Details = msgspec.field(default_factory=Details)


class Progress(msgspec.Struct):
    """How far the prompt has been read."""

    total: int = 0
    cache: int = 0
    time_ms: int = 0


class Verbose(msgspec.Struct):
    stopping_word: str = ""


class Completion(msgspec.Struct):
    choices: list[Choice] = []
    usage: Usage | None = None
    prompt_progress: Progress | None = None
    verbose: Verbose | None = msgspec.field(name="__verbose", default=None)
    error: dict[str, Any] | None = None


class TokenCount(msgspec.Struct):
    input_tokens: int


COMPLETION: Final = msgspec.json.Decoder(Completion)
TOKEN_COUNT: Final = msgspec.json.Decoder(TokenCount)

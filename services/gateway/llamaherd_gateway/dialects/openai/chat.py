"""`POST /v1/chat/completions`: passed through, unless llama-server would get something wrong."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from llamaherd_gateway.bodies import decode_body, model_of
from llamaherd_gateway.dialects.dialect import EVENTS, JSON, Asked, Call, Facts, Header, Route, Translation, Turn
from llamaherd_gateway.dialects.openai.errors import OPENAI
from llamaherd_gateway.dialects.openai.fields import change_fields, check_choices, clean_stop, holds_empty_stop
from llamaherd_gateway.dialects.openai.function_calls import FunctionCalls
from llamaherd_gateway.dialects.openai.media import Message, check_media
from llamaherd_gateway.dialects.openai.renaming import Renamed
from llamaherd_gateway.dialects.openai.tools import choose_tools, messages_of_functions, tools_of_functions
from llamaherd_gateway.problems import BadRequest

PATH: Final = "/v1/chat/completions"


class ChatBody(msgspec.Struct):
    """Fields that are looked at, most of them only to see that nothing has to be done."""

    model: Any = None
    messages: list[Message] | None = None
    stream: Any = None
    stop: Any = None
    n: Any = None
    logprobs: Any = None
    top_logprobs: Any = None
    tools: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None


class _Messages(msgspec.Struct):
    messages: list[Any]


class Wants(msgspec.Struct, frozen=True):
    """What the call and its translation need to know."""

    choices: Any = None
    """`n`"""
    functions: bool = False
    """Asked in the way of old: `function_call` is expected."""


_DECODER: Final = msgspec.json.Decoder(ChatBody)
_MESSAGES: Final = msgspec.json.Decoder(_Messages)
_ANYTHING: Final = msgspec.json.Decoder(Any)


def read_chat(body: bytes, headers: Sequence[Header] = ()) -> Asked:
    """Raises `BadRequest`."""
    read = decode_body(_DECODER, body)
    model = model_of(read.model)
    if not read.messages:
        raise _no_messages(read.messages)
    check_media(read.messages)
    if read.top_logprobs is not None and read.logprobs is not True:
        text = "`top_logprobs` can only be asked for together with `logprobs: true`"
        raise BadRequest(text, param="top_logprobs", code="invalid_value")
    if (
        isinstance(read.tool_choice, dict)
        or read.functions is not None
        or read.function_call is not None
        or holds_empty_stop(read.stop)
        or read.top_logprobs == 0
    ):
        body = _mend(body, read)
    wants = None
    if read.n is not None or read.functions is not None:
        wants = Wants(read.n, read.functions is not None)
    return Asked(model=model, stream=read.stream is True, body=body, content=wants)


def call_chat(asked: Asked, facts: Facts, turn: Turn) -> Call:
    """Raises `BadRequest` when there are fewer slots than choices."""
    translation: Translation | None = None
    if asked.content is not None:
        check_choices(asked.content.choices, facts)
        if asked.content.functions:
            translation = FunctionCalls(asked.model, stream=asked.stream)
    if translation is None and asked.model != facts.model:
        translation = Renamed(facts.model, asked.model, stream=asked.stream)
    return Call(path=PATH, body=asked.body, translation=translation)


def _mend(body: bytes, read: ChatBody) -> bytes:
    changes: dict[str, Any] = {}
    if holds_empty_stop(read.stop):
        changes["stop"] = clean_stop(read.stop)
    if read.top_logprobs == 0:
        changes["top_logprobs"] = 1  # with 0 llama-server tells no probabilities at all
    if isinstance(read.tool_choice, dict):
        tools = decode_body(_ANYTHING, bytes(read.tools)) if memoryview(read.tools) else None
        changes["tools"], changes["tool_choice"] = choose_tools(tools, read.tool_choice)
    elif read.functions is not None:
        changes |= tools_of_functions(read.functions, read.function_call)
        changes["messages"] = messages_of_functions(decode_body(_MESSAGES, body).messages)
    elif read.function_call is not None:
        text = "`function_call` needs `functions`; newer clients send `tools` and `tool_choice`"
        raise BadRequest(text, param="function_call", code="invalid_value")
    return change_fields(body, changes)


def _no_messages(messages: list[Message] | None) -> BadRequest:
    if messages is None:
        return BadRequest(
            "Missing required parameter: 'messages'.", param="messages", code="missing_required_parameter"
        )
    text = "Invalid 'messages': empty array. Expected an array with minimum length 1, but got an empty array instead."
    return BadRequest(text, param="messages", code="empty_array")


ROUTES: Final = (
    Route(
        path=PATH,
        dialect=OPENAI,
        read=read_chat,
        call=call_chat,
        shape=ChatBody,
        needs=("model", "messages"),
        gives=(JSON, EVENTS),
        about="An answer to a conversation",
        example='{"model": "cria", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 16}',
    ),
)

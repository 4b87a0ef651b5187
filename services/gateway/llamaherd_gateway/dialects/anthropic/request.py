"""`POST /v1/messages` and `/v1/messages/count_tokens`: read once, put to llama-server as a chat completion.

The chat route is used rather than llama-server's own `/v1/messages`, which drops `thinking`, `output_config`, documents
and half of `tool_choice` (reference: api-dialects, 4.1).
"""

from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec

from llamaherd_gateway.bodies import decode_body, model_of
from llamaherd_gateway.dialects.anthropic.answer import AnswerTranslation, CountTranslation, Expected
from llamaherd_gateway.dialects.anthropic.blocks import Text
from llamaherd_gateway.dialects.anthropic.conversation import Conversation, Message, read_conversation
from llamaherd_gateway.dialects.dialect import Asked, Call, Facts, Header, Turn
from llamaherd_gateway.problems import BadRequest

_EFFORTS: Final = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}
"""Anthropic's effort -> `reasoning_effort`: no chat template knows more than these three."""

_PASSED: Final = (
    "temperature", "top_p", "top_k", "min_p", "seed", "repeat_penalty", "presence_penalty", "frequency_penalty",
)  # fmt: skip
"""Named alike on both sides; those that Anthropic does not know are llama-server's."""


class Tool(msgspec.Struct):
    name: str
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None


class ToolChoice(msgspec.Struct):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingConfig(msgspec.Struct):
    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: int | None = None
    display: str | None = None


class OutputFormat(msgspec.Struct):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class MessagesBody(msgspec.Struct):
    """Everything else a client may send (`metadata`, `service_tier`, `cache_control`...) changes nothing here."""

    model: Any = None
    messages: list[Message] | None = None
    max_tokens: int | None = None
    system: str | list[Text] | None = None
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    """Where `output_config.format` stood before it was released."""
    chat_template_kwargs: dict[str, Any] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: Any = None
    seed: Any = None
    repeat_penalty: Any = None
    presence_penalty: Any = None
    frequency_penalty: Any = None


_DECODER: Final = msgspec.json.Decoder(MessagesBody)


class Question(msgspec.Struct, frozen=True):
    """A request, read: the chat completion without its model."""

    fields: dict[str, msgspec.Raw]
    """In the order of the prompt, so that requests that begin alike look alike from their first byte."""
    expected: Expected


def read_messages(body: bytes, headers: Sequence[Header] = ()) -> Asked:
    """Raises `BadRequest`."""
    read = decode_body(_DECODER, body)
    model = model_of(read.model)
    if read.max_tokens is None or read.max_tokens < 1:
        raise BadRequest("max_tokens: required, and at least 1", param="max_tokens", code="invalid_max_tokens")
    conversation, fields = _prompt(read)
    stops = [stop for stop in read.stop_sequences or () if stop]  # llama-server would stop at once for an empty one
    fields["max_tokens"] = read.max_tokens
    fields |= {name: value for name in _PASSED if (value := getattr(read, name)) is not None}
    if stops:
        # The only way to learn which of them was met: `finish_reason` is `stop` for all, and for the end of the turn.
        fields |= {"stop": stops, "verbose": True, "response_fields": ["stopping_word"]}
    if read.stream:
        # Progress tells the prompt's tokens before the first token of the answer: `message_start` wants them.
        fields |= {"stream": True, "stream_options": {"include_usage": True}, "return_progress": True}
    expected = Expected(
        model=model,
        max_tokens=read.max_tokens,
        stop_sequences=frozenset(stops),
        thoughts=_thoughts(read),
        spoken=conversation.spoken,
        thought=conversation.thought,
    )
    return Asked(model=model, stream=read.stream is True, content=Question(_encode(fields), expected))


def call_chat(asked: Asked, facts: Facts, turn: Turn) -> Call:
    """The chat completion, and how to read what comes back."""
    question: Question = asked.content
    translation = AnswerTranslation(question.expected, turn, stream=asked.stream, context_tokens=facts.context_tokens)
    return Call(path="/v1/chat/completions", body=_body(question, facts), translation=translation)


def read_count(body: bytes, headers: Sequence[Header] = ()) -> Asked:
    """Raises `BadRequest`."""
    read = decode_body(_DECODER, body)
    model = model_of(read.model)
    _, fields = _prompt(read)
    return Asked(model=model, content=Question(_encode(fields), Expected(model=model)))


def call_count(asked: Asked, facts: Facts, turn: Turn) -> Call:
    """llama-server counts the very prompt that the same messages would become."""
    body = _body(asked.content, facts)
    return Call(path="/v1/chat/completions/input_tokens", body=body, translation=CountTranslation())


def _body(question: Question, facts: Facts) -> bytes:
    return msgspec.json.encode({"model": facts.model, **question.fields})


def _encode(fields: dict[str, Any]) -> dict[str, msgspec.Raw]:
    try:
        return {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in fields.items()}
    except RecursionError as error:
        raise BadRequest("the request's body is nested too deeply", code="invalid_json") from error


def _prompt(read: MessagesBody) -> tuple[Conversation, dict[str, Any]]:
    """Whatever decides about the prompt."""
    if not read.messages:
        raise BadRequest("messages: at least one message is required", param="messages", code="missing_messages")
    tools = _tools(read.tools or [], read.tool_choice)
    conversation = read_conversation(read.system, read.messages)
    fields: dict[str, Any] = {"tools": tools} if tools else {}
    fields["messages"] = conversation.messages
    if conversation.messages[-1]["role"] == "assistant":
        # Said outright, since a stream repeats what is continued when llama-server has to guess.
        fields |= {"continue_final_message": True, "add_generation_prompt": False}
    if tools and read.tool_choice is not None:
        if read.tool_choice.type in ("any", "tool"):
            fields["tool_choice"] = "required"
        if read.tool_choice.disable_parallel_tool_use:
            fields["parallel_tool_calls"] = False
    fields |= _thinking(read)
    config = read.output_config or OutputConfig()
    if config.effort is not None:
        fields["reasoning_effort"] = _EFFORTS[config.effort]
    if (format_ := config.format or read.output_format) is not None:
        schema = {"name": "output", "schema": format_.schema}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    return conversation, fields


def _tools(tools: list[Tool], choice: ToolChoice | None) -> list[dict[str, Any]]:
    """Those the model may call. llama-server cannot force one of several, nor forbid them: the others are left out."""
    for index, tool in enumerate(tools):
        if tool.type not in (None, "custom"):
            raise BadRequest(
                f"tools.{index}: `{tool.type}` cannot be served here: only tools of type `custom`, which the client "
                "defines and runs itself",
                param="tools",
                code="unsupported_tool",
            )
        if tool.input_schema is None:
            raise BadRequest(f"tools.{index}.input_schema: required", param="tools", code="invalid_tool")
    if choice is None or choice.type == "auto":
        wanted = tools
    elif choice.type == "none":
        wanted = []
    else:
        wanted = tools if choice.type == "any" else [tool for tool in tools if tool.name == choice.name]
        if not wanted:
            said = f"`{choice.name}` is not among `tools`" if choice.type == "tool" else "`any` needs `tools`"
            raise BadRequest(f"tool_choice: {said}", param="tool_choice", code="invalid_tool_choice")
    return [
        {
            "type": "function",
            "function": {"name": tool.name, "description": tool.description or "", "parameters": tool.input_schema},
        }
        for tool in wanted
    ]


def _thinking(read: MessagesBody) -> dict[str, Any]:
    """A model thinks when it was asked to: many clients take `content[0]` for the text, as they may without `thinking`.

    A model that cannot think takes no notice of any of this.
    """
    config = read.thinking
    on = config is not None and config.type != "disabled"
    fields: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": on, **(read.chat_template_kwargs or {})}}
    if config is not None and config.type == "enabled" and config.budget_tokens is not None:
        fields["reasoning_budget_tokens"] = max(config.budget_tokens, 0)
    return fields


def _thoughts(read: MessagesBody) -> Literal["shown", "omitted", "hidden"]:
    """What the client wants to see of thoughts."""
    if read.thinking is None:
        return "shown" if (read.chat_template_kwargs or {}).get("enable_thinking") is True else "hidden"
    if read.thinking.type == "disabled":
        return "hidden"
    return "omitted" if read.thinking.display == "omitted" else "shown"

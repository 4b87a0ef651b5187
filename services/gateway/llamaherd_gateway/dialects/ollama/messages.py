"""A conversation of Ollama's clients -> one for llama-server's chat route (reference: api-dialects, 5.3)."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from llamaherd_gateway.dialects.ollama.media import render_media
from llamaherd_gateway.problems import BadRequest


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"{}"))


class _ToolCall(msgspec.Struct):
    id: str | None = None
    function: _Function | None = None


class Message(msgspec.Struct):
    """One message of a request."""

    role: str | None = None
    content: str | None = None
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[_ToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


def render_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Raises `BadRequest`.

    Ollama's clients give no ids to tool calls and name only the tool with its result; templates and llama-server
    pair them by id. So calls get ids that depend on nothing but their place, to leave the prompt's prefix as it was
    the time before, and a result gets that of the first unanswered call of its tool.
    """
    rendered = []
    unanswered: list[tuple[str, str]] = []
    calls = 0
    for message in messages:
        role = (message.role or "").lower()
        put: dict[str, Any] = {"role": role, "content": _render_content(message)}
        if message.thinking:
            put["reasoning_content"] = message.thinking
        if message.tool_calls:
            put["tool_calls"] = [_render_call(call, calls + at) for at, call in enumerate(message.tool_calls)]
            unanswered = [(call["id"], call["function"]["name"]) for call in put["tool_calls"]]
            calls += len(unanswered)
        if role == "tool":
            if call_id := message.tool_call_id or _find_call(unanswered, message.tool_name):
                put["tool_call_id"] = call_id
                unanswered = [call for call in unanswered if call[0] != call_id]
            if message.tool_name:
                put["name"] = message.tool_name
        rendered.append(put)
    return rendered


def text_of(rendered: Mapping[str, Any]) -> str:
    """Of a rendered message, without its images."""
    content = rendered["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _find_call(unanswered: Sequence[tuple[str, str]], tool_name: str | None) -> str | None:
    named = [call_id for call_id, name in unanswered if tool_name in (None, "", name)]
    return named[0] if named else None


def _render_content(message: Message) -> str | list[dict[str, Any]]:
    text = message.content or ""
    if not message.images:
        return text
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}] if text else []
    return parts + [render_media(image) for image in message.images]


def _render_call(call: _ToolCall, number: int) -> dict[str, Any]:
    function = call.function or _Function()
    arguments = bytes(function.arguments).strip()
    if arguments == b"null":
        arguments = b"{}"
    if not arguments.startswith(b"{"):
        raise BadRequest("the arguments of a tool call must be an object", param="messages", code="invalid_type")
    return {
        "id": call.id or f"call_{number}",
        "type": "function",
        "function": {"name": function.name or "", "arguments": arguments.decode()},
    }

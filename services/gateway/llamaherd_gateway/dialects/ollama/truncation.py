"""Leaving out old messages when the context is too short for all (reference: api-dialects, 5.3)."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from llamaherd_gateway.dialects.dialect import Ask, Preset
from llamaherd_gateway.dialects.ollama.messages import text_of
from llamaherd_gateway.dialects.ollama.request import Conversation

IMAGE_TOKENS: Final = 768
"""Ollama's guess for one image."""
_MESSAGE_TOKENS: Final = 16
"""More than any template puts around a message."""


async def shorten(
    conversation: Conversation, template_fields: dict[str, Any], context_tokens: int, ask: Ask, preset: Preset
) -> Conversation:
    """The newest messages that fit, and every system message. Asks nothing when all fit in any case.

    How an alias begins every chat is measured with them, and added later. A conversation is cut before a message of
    the user, so that no tool result loses its call. The last message stays, fitting or not: llama-server then says how
    much too long it is.
    """
    messages = conversation.messages
    if not context_tokens or _most_tokens(preset.begin(messages), conversation.tools) < context_tokens:
        return conversation
    users = [at for at, message in enumerate(messages) if at and message["role"] == "user"]
    cuts = sorted({0, *users, len(messages) - 1})
    # The first cut that fits is looked for by halves: every question is two round trips.
    low, high = 0, len(cuts) - 1
    while low < high:
        middle = (low + high) // 2
        if await _count(preset.begin(_cut(messages, cuts[middle])), template_fields, ask) < context_tokens:
            high = middle
        else:
            low = middle + 1
    return msgspec.structs.replace(conversation, messages=tuple(_cut(messages, cuts[low])))


def _cut(messages: Sequence[dict[str, Any]], at: int) -> list[dict[str, Any]]:
    return [message for message in messages[:at] if message["role"] == "system"] + list(messages[at:])


def _most_tokens(messages: Sequence[dict[str, Any]], tools: Sequence[msgspec.Raw]) -> int:
    """No token is shorter than a byte."""
    total = sum(len(bytes(tool)) for tool in tools)
    for message in messages:
        images = sum(1 for part in _parts(message) if part["type"] != "text")
        texts = [text_of(message), message.get("reasoning_content", "")]
        total += _MESSAGE_TOKENS + IMAGE_TOKENS * images + sum(len(text.encode()) for text in texts)
        total += sum(len(msgspec.json.encode(call)) for call in message.get("tool_calls", ()))
    return total


async def _count(messages: Sequence[dict[str, Any]], template_fields: dict[str, Any], ask: Ask) -> int:
    rendered = await ask("/apply-template", {"messages": messages, **template_fields})
    counted = await ask("/tokenize", {"content": rendered["prompt"], "add_special": True, "parse_special": True})
    images = sum(1 for message in messages for part in _parts(message) if part["type"] != "text")
    return len(counted["tokens"]) + IMAGE_TOKENS * images


def _parts(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    return content if isinstance(content, list) else []

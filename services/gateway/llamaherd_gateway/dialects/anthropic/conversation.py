"""Anthropic's `system` and `messages` -> the messages of a chat completion."""

import re
from typing import Any, Final, Literal

import msgspec

from llamaherd_gateway.dialects.anthropic.blocks import (
    Block,
    Part,
    RedactedThinking,
    Text,
    Thinking,
    ToolResult,
    ToolUse,
    content_of,
    parse_blocks,
    parts_of,
    parts_of_result,
)
from llamaherd_gateway.problems import BadRequest

TOOL_ID_PREFIX: Final = "toolu_"
"""Put before llama-server's ids, taken off again here: some chat templates accept only ids of their own form."""

_BILLING: Final = re.compile(r"x-anthropic-billing-header:(?: *\w+=[^;\n]*;)*\s*")
"""Claude Code's first system block. Its `cch=` is another in every request, and no prefix cache would reach past it."""

_JOINT: Final = "\n\n"
"""Between the blocks of the system prompt."""


class Message(msgspec.Struct):
    """One of `messages`."""

    role: Literal["user", "assistant", "system"]
    content: str | list[msgspec.Raw]


class Turn(msgspec.Struct):
    """What one side says until the other speaks."""

    role: Literal["user", "assistant"]
    blocks: list[tuple[str, Block]]


class Conversation(msgspec.Struct):
    """A conversation as a chat completion takes it."""

    messages: list[dict[str, Any]]
    spoken: str = ""
    """What the assistant's last turn holds already: the answer goes on from there."""
    thought: str = ""
    """The same of its thoughts."""


def read_conversation(system: str | list[Text] | None, messages: list[Message]) -> Conversation:
    """Raises `BadRequest`, naming the place."""
    prompt, turns = _gather(system, messages)
    if not turns:
        raise BadRequest("messages: at least one must be of role `user`", param="messages", code="missing_messages")
    conversation = Conversation([{"role": "system", "content": prompt}] if prompt else [])
    for turn in turns:
        if turn.role == "user":
            conversation.messages += _user(turn.blocks)
        else:
            conversation.messages.append(_assistant(turn.blocks))
    if turns[-1].role == "assistant":
        last = conversation.messages[-1]
        conversation.spoken, conversation.thought = last["content"], last.get("reasoning_content", "")
    return conversation


def _gather(system: str | list[Text] | None, messages: list[Message]) -> tuple[str, list[Turn]]:
    """The system prompt, and turns that alternate, as most chat templates demand."""
    prompt = [system] if isinstance(system, str) else [block.text for block in system or ()]
    turns: list[Turn] = []
    for index, message in enumerate(messages):
        blocks = parse_blocks(message.content, f"messages.{index}")
        role: Literal["user", "assistant"] = "assistant" if message.role == "assistant" else "user"
        if message.role == "system":
            text = _system_text(blocks)
            if not turns:
                prompt.append(text)
                continue
            # Many templates know a system message at the beginning only.
            blocks = [(f"messages.{index}", Text(f"<system>\n{text}\n</system>"))]
        if turns and turns[-1].role == role:
            turns[-1].blocks += blocks
        else:
            turns.append(Turn(role, blocks))
    stripped = [_BILLING.sub("", text, 1) if text.startswith("x-anthropic") else text for text in prompt]
    return _JOINT.join(text for text in stripped if text), turns


def _system_text(blocks: list[tuple[str, Block]]) -> str:
    for where, block in blocks:
        if not isinstance(block, Text):
            raise BadRequest(f"{where}: a message of role `system` holds text only")
    return _JOINT.join(block.text for _, block in blocks if isinstance(block, Text))


def _user(blocks: list[tuple[str, Block]]) -> list[dict[str, Any]]:
    """Results first: they belong to the calls before, and the user's words would part the two."""
    results: list[dict[str, Any]] = []
    parts: list[Part] = []
    for where, block in blocks:
        match block:
            case ToolResult():
                results.append(_result(block, where))
            case ToolUse() | Thinking() | RedactedThinking():
                raise BadRequest(f"{where}: `{_tag(block)}` belongs into a message of role `assistant`")
            case readable:
                parts += parts_of(readable, where)
    if parts or not results:
        return [*results, {"role": "user", "content": content_of(parts)}]
    return results


def _result(block: ToolResult, where: str) -> dict[str, Any]:
    parts = parts_of_result(block.content, where)
    if block.is_error:
        first = parts[0] if parts and isinstance(parts[0], str) else ""
        parts[: 1 if first else 0] = [f"Error: {first}" if first else "Error"]
    return {"role": "tool", "tool_call_id": _own_id(block.tool_use_id), "content": content_of(parts)}


def _assistant(blocks: list[tuple[str, Block]]) -> dict[str, Any]:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for where, block in blocks:
        match block:
            case Text():
                texts.append(block.text)
            case Thinking():
                thoughts.append(block.thinking)
            case RedactedThinking():
                pass  # sealed by Anthropic: nobody else can read it
            case ToolUse():
                calls.append(_call(block))
            case _:
                raise BadRequest(f"{where}: `{_tag(block)}` cannot be part of a message of role `assistant`")
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
    if thought := "".join(thoughts):
        message["reasoning_content"] = thought
    if calls:
        message["tool_calls"] = calls
    return message


def _call(block: ToolUse) -> dict[str, Any]:
    arguments = msgspec.json.encode(block.input).decode()
    function = {"name": block.name, "arguments": arguments}
    return {"id": _own_id(block.id), "type": "function", "function": function}


def _own_id(id_: str) -> str:
    return id_.removeprefix(TOOL_ID_PREFIX)


def _tag(block: Block) -> object:
    return block.__struct_config__.tag

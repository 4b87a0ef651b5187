"""A Responses API request as the chat completion that llama-server is asked for.

llama-server has a `/v1/responses` of its own, but it drops `text.format` and `tool_choice` objects, and its events
lack what OpenAI's clients count by; so the chat route is used, and everything is translated here.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from llamaherd_gateway.dialects.openai.fields import objects_in
from llamaherd_gateway.dialects.openai.media import refuse_remote_media
from llamaherd_gateway.dialects.openai.tools import choose_tools
from llamaherd_gateway.problems import BadRequest

LOGPROBS: Final = "message.output_text.logprobs"

_UNSUPPORTED: Final = {
    "conversation": "go on with `previous_response_id`, or send the whole conversation as `input`",
    "prompt": "prompts are not kept here: send `instructions` and `input`",
}
_OWN: Final = frozenset({
    "background", "conversation", "include", "input", "instructions", "max_output_tokens", "max_tool_calls",
    "metadata", "previous_response_id", "prompt", "prompt_cache_key", "prompt_cache_options",
    "prompt_cache_retention", "reasoning", "safety_identifier", "service_tier", "store", "stream_options", "text",
    "tool_choice", "tools", "top_logprobs", "truncation", "user",
})  # fmt: skip
"""Fields that mean nothing to a chat completion, or something else. Every other one is handed on."""


def chat_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Body of the chat completion. Raises `BadRequest`."""
    for name, advice in _UNSUPPORTED.items():
        if fields.get(name) is not None:
            raise BadRequest(f"`{name}` is not supported: {advice}", param=name, code="unsupported_parameter")
    if fields.get("background"):
        text = "`background` is not supported: an answer ends with its connection"
        raise BadRequest(text, param="background", code="unsupported_parameter")
    chat = {name: value for name, value in fields.items() if name not in _OWN}
    chat["messages"] = messages_of(fields.get("input"), fields.get("instructions"))
    refuse_remote_media(chat["messages"])
    if fields.get("max_output_tokens") is not None:
        chat["max_tokens"] = fields["max_output_tokens"]
    effort = _object(fields, "reasoning").get("effort")
    if effort is not None:
        chat["reasoning_effort"] = effort
    chat |= _tools(fields)
    response_format = _format(_object(_object(fields, "text"), "format"))
    if response_format is not None:
        chat["response_format"] = response_format
    include = fields.get("include")
    if (isinstance(include, list) and LOGPROBS in include) or fields.get("top_logprobs"):
        # With 0 alternatives llama-server tells no probabilities at all.
        chat |= {"logprobs": True, "top_logprobs": fields.get("top_logprobs") or 1}
    if chat.get("stream") is True:
        chat["stream_options"] = {"include_usage": True}
    return chat


def messages_of(said: Any, instructions: Any) -> list[dict[str, Any]]:
    """Raises `BadRequest` for items that cannot be put into a conversation."""
    messages: list[dict[str, Any]] = []
    if instructions is not None:
        if not isinstance(instructions, str):
            raise BadRequest("`instructions` must be a text", param="instructions", code="invalid_type")
        messages.append({"role": "system", "content": instructions})
    if isinstance(said, str):
        messages.append({"role": "user", "content": said})
    elif isinstance(said, list) and said:
        for number, item in enumerate(said):
            if not isinstance(item, dict):
                raise _bad_item(number, "it is no object")
            kind = item.get("type", "message")
            reader = _ITEMS.get(kind) if isinstance(kind, str) else None
            if reader is None:
                raise _bad_item(number, f"items of type {kind!r} are not supported")
            reader(item, number, messages)
    else:
        raise BadRequest("`input` must be a text or a list of items, and not empty", param="input", code="invalid_type")
    return messages


def _take_message(item: dict[str, Any], number: int, messages: list[dict[str, Any]]) -> None:
    role, content = item.get("role"), item.get("content")
    if role not in ("user", "system", "developer", "assistant"):
        raise _bad_item(number, f"a message's role must be user, assistant, system or developer, not {role!r}")
    if isinstance(content, list):
        content = [_part(part, number) for part in content]
        if role == "assistant":
            content = "".join(part.get("text", "") for part in content)
    elif not isinstance(content, str):
        raise _bad_item(number, "its `content` must be a text or a list of parts")
    if role == "assistant" and (turn := _open_turn(messages)) is not None and turn.get("content") is None:
        turn["content"] = content
    else:
        messages.append({"role": role, "content": content})


def _take_call(item: dict[str, Any], number: int, messages: list[dict[str, Any]]) -> None:
    if not all(isinstance(item.get(name), str) for name in ("call_id", "name", "arguments")):
        raise _bad_item(number, "a function call needs `call_id`, `name` and `arguments`, all texts")
    function = {"name": item["name"], "arguments": item["arguments"]}
    turn = _open_turn(messages)
    if turn is None:
        turn = {"role": "assistant", "content": None}
        messages.append(turn)
    turn.setdefault("tool_calls", []).append({"id": item["call_id"], "type": "function", "function": function})


def _take_result(item: dict[str, Any], number: int, messages: list[dict[str, Any]]) -> None:
    output = item.get("output")
    if isinstance(output, list):
        output = [_part(part, number) for part in output]
    elif not isinstance(output, str):
        raise _bad_item(number, "its `output` must be a text or a list of parts")
    messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": output})


def _take_reasoning(item: dict[str, Any], number: int, messages: list[dict[str, Any]]) -> None:
    """What was thought, or else its summary; OpenAI's encrypted thoughts say nothing to this model."""
    parts = objects_in(item.get("content")) or objects_in(item.get("summary"))
    text = "".join(part["text"] for part in parts if isinstance(part.get("text"), str))
    if text:
        messages.append({"role": "assistant", "content": None, "reasoning_content": text})


_ITEMS: Final[Mapping[str, Callable[[dict[str, Any], int, list[dict[str, Any]]], None]]] = {
    "message": _take_message,
    "function_call": _take_call,
    "function_call_output": _take_result,
    "reasoning": _take_reasoning,
}


def _open_turn(messages: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The assistant's turn that thoughts, text and calls following each other belong to."""
    return messages[-1] if messages and messages[-1]["role"] == "assistant" else None


def _part(part: Any, number: int) -> dict[str, Any]:
    match part:
        case {"type": "input_text" | "output_text" | "text", "text": str(text)}:
            return {"type": "text", "text": text}
        case {"type": "refusal", "refusal": str(text)}:
            return {"type": "text", "text": text}
        case {"type": "input_image", "image_url": str(url)}:
            return {"type": "image_url", "image_url": {"url": url}}
        case {"type": "input_audio", "input_audio": dict(sound)}:
            return {"type": "input_audio", "input_audio": sound}
        case {"type": "input_image"}:
            raise _bad_item(number, "an image needs `image_url`; files are not kept here")
        case {"type": kind}:
            raise _bad_item(number, f"content of type {kind!r} is not supported")
        case _:
            raise _bad_item(number, "a part of its content makes no sense")


def _tools(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Functions only: tools that OpenAI runs itself are left out, as the model could not use them."""
    given, choice = fields.get("tools"), fields.get("tool_choice")
    tools = []
    for tool in objects_in(given):
        if tool.get("type") == "function":
            names = ("name", "description", "parameters", "strict")
            tools.append(
                {"type": "function", "function": {name: tool[name] for name in names if tool.get(name) is not None}}
            )
    chosen, mode = choose_tools(tools, choice)
    if mode == "required" and not chosen:
        text = "`tool_choice` requires a call, but there is no function among `tools`"
        raise BadRequest(text, param="tool_choice", code="invalid_value")
    found = {"tools": chosen} if chosen else {}
    return found | ({"tool_choice": mode} if chosen and mode is not None else {})


def _format(wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    match wanted.get("type"):
        case None | "text":
            return None
        case "json_object":
            return {"type": "json_object"}
        case "json_schema":
            names = ("name", "description", "schema", "strict")
            schema = {name: wanted[name] for name in names if wanted.get(name) is not None}
            return {"type": "json_schema", "json_schema": schema}
        case kind:
            text = f"`text.format` of type {kind!r} is not supported"
            raise BadRequest(text, param="text.format", code="unsupported_parameter")


def _object(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = fields.get(name)
    return value if isinstance(value, dict) else {}


def _bad_item(number: int, reason: str) -> BadRequest:
    return BadRequest(f"`input[{number}]` cannot be read: {reason}", param=f"input[{number}]", code="invalid_value")

"""What /api/chat and /api/generate ask of llama-server (reference: api-dialects, 5.2, 5.3, 5.5, 5.6)."""

import re
from typing import Any, Final

import msgspec

from llamaherd_gateway.dialects.dialect import Ask, Asked, Call, Facts, Preset, Turn
from llamaherd_gateway.dialects.ollama.answer import Answer, Prompt
from llamaherd_gateway.dialects.ollama.media import render_media
from llamaherd_gateway.dialects.ollama.names import quoted, split_name
from llamaherd_gateway.dialects.ollama.options import render_sampling
from llamaherd_gateway.dialects.ollama.request import Conversation, Text, Wanted
from llamaherd_gateway.dialects.ollama.truncation import shorten
from llamaherd_gateway.problems import BadRequest

_MARKER: Final = re.compile(r"<__media[^>]*__>")
_HARMONY: Final = frozenset(("gpt-oss", "gptoss"))
"""Architectures whose template knows three levels of thinking, and no `max`."""
_ANY_OBJECT: Final = msgspec.Raw(b'{"type":"object"}')


async def prepare(asked: Asked, facts: Facts, ask: Ask) -> Asked:
    """Shortens a conversation that may be too long for the context; learns how an image is marked in a raw prompt."""
    content = asked.content
    match content:
        case Conversation(truncate=True) if not content.render_only:
            preset = facts.preset or Preset()
            content = await shorten(content, template_fields(content, facts), facts.context_tokens, ask, preset)
        case Text(images=(first, *_)):
            content = msgspec.structs.replace(content, marker=await _find_marker(first, ask))
    return asked if content is asked.content else msgspec.structs.replace(asked, content=content)


def call(asked: Asked, facts: Facts, turn: Turn) -> Call:
    """Raises `BadRequest` for what this model cannot do."""
    content = asked.content
    wanted: Wanted = content.wanted
    if wanted.think and "thinking" not in facts.capabilities:
        raise _unable(quoted(wanted.model), "thinking")
    if "completion" not in facts.capabilities:
        raise _unable(quoted(wanted.model), "chat" if wanted.chat else "generate")
    return _call_chat(content, facts, turn) if isinstance(content, Conversation) else _call_text(content, facts, turn)


def template_fields(content: Conversation, facts: Facts) -> dict[str, Any]:
    """What, besides the messages, decides how the prompt looks."""
    fields: dict[str, Any] = {}
    if content.tools:
        fields["tools"] = content.tools
    think = content.wanted.think
    if think is None and "thinking" in facts.capabilities:
        think = True
    if think is not None:
        fields["chat_template_kwargs"] = {"enable_thinking": bool(think)}
        if isinstance(think, str):
            level = "high" if think == "max" and facts.architecture in _HARMONY else think
            fields["chat_template_kwargs"]["reasoning_effort"] = level
    return fields


def _call_chat(content: Conversation, facts: Facts, turn: Turn) -> Call:
    wanted = content.wanted
    if content.tools and "tools" not in facts.capabilities:
        raise _unable(split_name(wanted.model).full, "tools")
    body = {"model": facts.model, "messages": content.messages, **template_fields(content, facts)}
    if content.render_only:
        return Call(path="/apply-template", body=msgspec.json.encode(body), translation=Prompt(wanted))
    body |= {"stream": wanted.stream, **render_sampling(wanted.options, facts)}
    if wanted.schema is not None:
        schema = {"name": "schema", "schema": wanted.schema}
        any_object = bytes(wanted.schema) == b"{}"
        body["response_format"] = (
            {"type": "json_object"} if any_object else {"type": "json_schema", "json_schema": schema}
        )
    if wanted.logprobs:
        body |= {"logprobs": True, "top_logprobs": max(wanted.top_logprobs, 1)}
    remembered = None if wanted.chat else content.messages
    answer = Answer(wanted, turn, remembered=remembered)
    return Call(path="/v1/chat/completions", body=msgspec.json.encode(body), translation=answer)


def _call_text(content: Text, facts: Facts, turn: Turn) -> Call:
    wanted = content.wanted
    body = {"model": facts.model, "stream": wanted.stream, **render_sampling(wanted.options, facts)}
    if wanted.schema is not None:
        body["json_schema"] = _ANY_OBJECT if bytes(wanted.schema) == b"{}" else wanted.schema
    if wanted.logprobs:
        body["n_probs"] = max(wanted.top_logprobs, 1)
    if content.suffix:
        if "insert" not in facts.capabilities:
            raise _unable(split_name(wanted.model).full, "insert")
        path = "/infill"
        body |= {"input_prefix": content.prompt, "input_suffix": content.suffix}
    else:
        path = "/completion"
        body["prompt"] = _render_prompt(content)
    return Call(path=path, body=msgspec.json.encode(body), translation=Answer(wanted, turn, text=True))


def _render_prompt(content: Text) -> str | dict[str, Any]:
    """Ollama's mark of an image gives way to llama-server's; an image without a mark goes first."""
    if not content.images:
        return content.prompt
    prompt = content.prompt
    for number in range(len(content.images)):
        mark = f"[img-{number}]"
        if mark in prompt:
            prompt = prompt.replace(mark, content.marker, 1)
        else:
            prompt = content.marker + prompt
    return {"prompt_string": prompt, "multimodal_data": content.images}


async def _find_marker(image: str, ask: Ask) -> str:
    message = {"role": "user", "content": [render_media(image)]}
    rendered = await ask("/apply-template", {"messages": [message]})
    found = _MARKER.search(str(rendered.get("prompt")))
    if found is None:
        raise BadRequest("images cannot be used in raw mode with this model", param="images", code="unsupported")
    return found[0]


def _unable(model: str, what: str) -> BadRequest:
    return BadRequest(f"{model} does not support {what}", param="model", code="unsupported")

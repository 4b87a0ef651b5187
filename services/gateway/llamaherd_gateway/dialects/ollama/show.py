"""POST /api/show: one model in all detail (reference: api-dialects, 5.8)."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from llamaherd_gateway.dialects.dialect import Card, Description, Preset
from llamaherd_gateway.dialects.ollama.details import render_capabilities, render_details
from llamaherd_gateway.dialects.ollama.durations import render_time
from llamaherd_gateway.dialects.ollama.names import quoted, read_name, split_name
from llamaherd_gateway.dialects.ollama.request import read_body
from llamaherd_gateway.problems import BadRequest

LONG_ARRAY: Final = 5
"""Longer arrays of metadata are emptied unless all is asked for."""
_PARAMETER_COLUMNS: Final = 30
_COPILOT: Final = "GitHubCopilotChat/"
"""This client shows `general.basename`, and is given the name that was asked for."""
_UNTOLD: Final = frozenset(("general.name", "tokenizer.chat_template"))


class ShowBody(msgspec.Struct):
    model: str | None = None
    name: str | None = None
    verbose: bool | None = None


_BODY: Final = msgspec.json.Decoder(ShowBody)


def read_show(body: bytes) -> tuple[str, bool]:
    """(model, whether all is asked for). Raises `BadRequest`."""
    read = read_body(_BODY, body)
    asked = read.model or read.name
    if not asked:
        raise BadRequest("model is required", param="model", code="missing_model")
    return read_name(asked), read.verbose is True


def render_show(
    card: Card,
    description: Description,
    *,
    verbose: bool = False,
    asked: str = "",
    user_agent: str = "",
    preset: Preset | None = None,
) -> bytes:
    """`asked`: the name as the client typed it. `preset`: what an alias adds to its model."""
    preset = preset or Preset()
    template = _mark_insert(card, description.chat_template)
    info = _render_info(card, description.metadata, verbose=verbose)
    if user_agent.startswith(_COPILOT):
        info["general.basename"] = asked or card.name
    shown: dict[str, Any] = {
        "modelfile": _render_modelfile(card, template, preset),
        "parameters": "\n".join(
            f"{name:<{_PARAMETER_COLUMNS}} {_render_value(each)}"
            for name, value in preset.options.items()
            for each in (value if isinstance(value, list | tuple) else [value])
        ),
        "template": template,
        "system": preset.system,
        "messages": preset.messages,
        "license": description.metadata.get("general.license"),
        "details": render_details(card),
        "model_info": info,
        "tensors": [{"name": name, "type": kind, "shape": shape} for name, kind, shape in description.tensors],
        "capabilities": render_capabilities(card),
        "modified_at": render_time(card.modified_ns),
    }
    return msgspec.json.encode({key: value for key, value in shown.items() if value or key == "model_info"})


def _render_info(card: Card, metadata: Mapping[str, Any], *, verbose: bool) -> dict[str, Any]:
    """The file's metadata; what clients look for is there even when the file is not described."""
    architecture = card.architecture
    known = {"general.architecture": architecture, "general.parameter_count": card.parameters}
    if architecture:
        known[f"{architecture}.context_length"] = card.context_tokens
    info = {key: value for key, value in known.items() if value} | dict(metadata)
    return {
        key: [] if isinstance(value, list) and len(value) > LONG_ARRAY and not verbose else value
        for key, value in info.items()
        if key not in _UNTOLD
    }


def _mark_insert(card: Card, template: str) -> str:
    """Editors look for this word of Ollama's own templates to see whether a model fills gaps."""
    if "insert" not in card.capabilities or ".Suffix" in template:
        return template
    return template + "{#- .Suffix #}"


def _render_modelfile(card: Card, template: str, preset: Preset) -> str:
    lines = [f"FROM {split_name(card.model).display}"]
    if template:
        lines.append(f'TEMPLATE """{template}"""')
    if preset.system:
        lines.append(f'SYSTEM """{preset.system}"""')
    for name, value in preset.options.items():
        for each in value if isinstance(value, list | tuple) else [value]:
            lines.append(f"PARAMETER {name} {_render_value(each)}")
    lines += [f'MESSAGE {message["role"]} """{message["content"]}"""' for message in preset.messages]
    return "\n".join(lines) + "\n"


def _render_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return quoted(value) if isinstance(value, str) else str(value)

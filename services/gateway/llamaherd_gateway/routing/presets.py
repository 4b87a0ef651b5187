"""What an alias brings with it (Ollama's `create NAME from MODEL`): how chats begin, and parameters."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from llamaherd_gateway.dialects.dialect import Facts, Preset
from llamaherd_gateway.projection import Alias
from llamaherd_gateway.routing.rules import apply_rules
from llamaherd_shared.model_spec import Rules

_NAMES: Final = {
    "num_predict": "max_tokens",
    "num_keep": "n_keep",
    **{
        name: name
        for name in (
            "temperature", "top_k", "top_p", "min_p", "typical_p", "seed", "stop", "repeat_last_n", "repeat_penalty",
            "presence_penalty", "frequency_penalty", "mirostat", "mirostat_tau", "mirostat_eta",
        )
    },
}  # fmt: skip
"""Ollama's name -> llama-server's (api-dialects, 5.5). No other one gets into a request: a parameter called `stream`
would change what it is. Those that are missing here are decided when a model is loaded."""
_LIMITS: Final = ("max_tokens", "n_predict", "max_completion_tokens")
"""All mean the same to llama-server."""
_GENERATES: Final = ("messages", "prompt", "input_prefix")
"""One of these stands in every request for text."""
_LOOK_BACK_TOKENS: Final = 4096
"""What "the whole context" means to `repeat_last_n` while nobody knows how long that is."""

_FIELDS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_MESSAGES: Final = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])


def parameters_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Ollama's options as parameters of a request to llama-server."""
    parameters = {_NAMES[name]: value for name, value in options.items() if name in _NAMES and value is not None}
    if parameters.get("max_tokens", 0) < 0:
        del parameters["max_tokens"]  # no limit, as without it
    if "stop" in parameters:
        parameters["stop"] = [text for text in parameters["stop"] if text]  # an empty one would end every answer
    return parameters


def preset_of(alias: Alias) -> Preset:
    """What a dialect is told when a model is asked for by this alias."""
    return Preset(system=alias.system, messages=tuple(alias.messages), options=alias.options)


def apply_preset(facts: Facts, body: bytes) -> bytes:
    """A body for llama-server with what the alias adds. Where the request says something itself, that counts."""
    preset = facts.preset or Preset()
    try:
        fields = _FIELDS.decode(body)
        messages = _MESSAGES.decode(fields.get("messages", b"[]"))
    except msgspec.MsgspecError:
        return body  # what is wrong with it is llama-server's to say
    if (begun := preset.begin(messages)) is not messages:
        body = msgspec.json.encode({**fields, "messages": begun})
    if not any(name in fields for name in _GENERATES):
        return body
    given = parameters_of(preset.options)
    if _is_limited(fields):
        given.pop("max_tokens", None)
    if given.get("repeat_last_n", 0) < 0:
        given["repeat_last_n"] = facts.context_tokens or _LOOK_BACK_TOKENS
    return apply_rules(Rules(default=given), body) if given else body


def _is_limited(fields: Mapping[str, msgspec.Raw]) -> bool:
    return any(bytes(fields.get(name, b"null")) != b"null" for name in _LIMITS)

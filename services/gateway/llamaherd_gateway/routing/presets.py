"""What an alias brings with it (Ollama's `create NAME from MODEL`): a system message and parameters."""

from typing import Any, Final

import msgspec

from llamaherd_gateway.projection import Alias
from llamaherd_gateway.routing.rules import Rules, apply_rules

OPTION_NAMES: Final = {"num_predict": "max_tokens", "num_keep": "n_keep"}
"""Ollama's name -> llama-server's, where they differ; all others are the same (api-dialects, 5.5)."""
LOAD_OPTIONS: Final = frozenset(
    {"num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "use_mmap", "use_mlock", "numa", "draft_num_predict"}
)
"""Decided when a model is loaded, not by a request."""


class _Chat(msgspec.Struct):
    messages: list[msgspec.Raw] | None = None


class _Message(msgspec.Struct):
    role: str = ""


_CHAT: Final = msgspec.json.Decoder(_Chat)
_MESSAGE: Final = msgspec.json.Decoder(_Message)
_FIELDS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def parameters_of(options: dict[str, Any]) -> dict[str, Any]:
    """Ollama's options as parameters of a request to llama-server."""
    return {OPTION_NAMES.get(name, name): value for name, value in options.items() if name not in LOAD_OPTIONS}


def apply_preset(alias: Alias, body: bytes) -> bytes:
    """A body for llama-server with what the alias adds. Where the request says something itself, that counts."""
    if alias.system:
        messages = _CHAT.decode(body).messages
        if messages and _MESSAGE.decode(messages[0]).role not in ("system", "developer"):
            fields: dict[str, Any] = dict(_FIELDS.decode(body))
            fields["messages"] = [{"role": "system", "content": alias.system}, *messages]
            body = msgspec.json.encode(fields)
    return apply_rules(Rules(default=alias.parameters), body) if alias.parameters else body

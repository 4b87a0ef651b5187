"""The lists of models: `/api/v1/models` and `/api/v0/models` (api-dialects, 6.4)."""

import re
from typing import Any, Final

import msgspec

from llamaherd_gateway.dialects.dialect import Card, Herd, Loaded, PageRequest, Reply
from llamaherd_gateway.dialects.lmstudio.chat import reasoning_options
from llamaherd_gateway.problems import UnknownModel
from llamaherd_gateway.routing.table import unknown_model_message

SERVING: Final = frozenset({"ready", "draining"})
"""States of an instance that is in memory."""

OPTIONS: Final = {
    "context_length": "context_tokens",
    "eval_batch_size": "batch_tokens",
    "flash_attention": "flash_attention",
    "num_experts": "experts",
    "offload_kv_cache_to_gpu": "kv_offload",
    "parallel": "slots",
}
"""LM Studio's name of what a model is loaded with -> ours."""

_BITS: Final = re.compile(r"(?:Q|F|MXFP|NVFP)(\d+)")
"""In `Q4_K_M`, `IQ2_XS`, `BF16`, `MXFP4`."""


def list_v1(request: PageRequest, herd: Herd) -> Reply:
    """`{"models": [...]}`"""
    return Reply(body=msgspec.json.encode({"models": [describe_v1(card) for card in herd.cards]}))


def list_v0(request: PageRequest, herd: Herd) -> Reply:
    """`{"object": "list", "data": [...]}`"""
    data = [describe_v0(card) for card in herd.cards]
    return Reply(body=msgspec.json.encode({"object": "list", "data": data}))


def show_v0(request: PageRequest, herd: Herd) -> Reply:
    """One object. Raises `UnknownModel`."""
    name = request.parameters["id"]
    card = next((card for card in herd.cards if card.name == name), None)
    if card is None:
        raise UnknownModel(unknown_model_message(name, tuple(card.name for card in herd.cards)))
    return Reply(body=msgspec.json.encode(describe_v0(card)))


def describe_v1(card: Card) -> dict[str, Any]:
    """One of v1's `models`; what LM Studio leaves out for embedding models is left out here."""
    content: dict[str, Any] = {
        "type": type_v1(card),
        "publisher": publisher(card.model),
        "key": card.name,
        "display_name": card.title or card.model,
        "quantization": _quantization(card.quantization),
        "size_bytes": card.size_bytes,
        "params_string": params_string(card.parameters),
        "loaded_instances": [_describe_instance(card, loaded) for loaded in in_memory(card)],
        "max_context_length": card.context_tokens,
        "format": "gguf",
    }
    if content["type"] == "llm":
        content |= {
            "architecture": card.architecture or None,
            "capabilities": _capabilities(card),
            "description": None,
        }
    return content


def describe_v0(card: Card) -> dict[str, Any]:
    """One of v0's `data`."""
    if is_embedding(card):
        kind = "embeddings"
    else:
        kind = "vlm" if "vision" in card.capabilities else "llm"
    loaded = in_memory(card)
    content: dict[str, Any] = {
        "id": card.name,
        "object": "model",
        "type": kind,
        "publisher": publisher(card.model),
        "arch": card.architecture,
        "compatibility_type": "gguf",
        "quantization": card.quantization,
        "state": "loaded" if loaded else "not-loaded",
        "max_context_length": card.context_tokens,
    }
    if loaded:
        content["loaded_context_length"] = max(instance.context_tokens for instance in loaded)
    if "tools" in card.capabilities:
        content["capabilities"] = ["tool_use"]
    return content


def in_memory(card: Card) -> list[Loaded]:
    return [loaded for loaded in card.loaded if loaded.state in SERVING]


def instance_id(card: Card, loaded: Loaded) -> str:
    """The model's own name, as chats report it; the instance's where the model has several."""
    return card.model if len(in_memory(card)) <= 1 else loaded.name


def is_embedding(card: Card) -> bool:
    return "embedding" in card.capabilities and "completion" not in card.capabilities


def type_v1(card: Card) -> str:
    return "embedding" if is_embedding(card) else "llm"


def publisher(model: str) -> str:
    """Of a name like `publisher/model`; else empty, as the field must be there."""
    return model.partition("/")[0] if "/" in model else ""


def params_string(parameters: int) -> str | None:
    """As people write it: `7B`, `1.5B`, `137M`."""
    if parameters <= 0:
        return None
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if parameters >= size:
            count = parameters / size
            return f"{count:.0f}{unit}" if count >= 10 else f"{count:.1f}".removesuffix(".0") + unit
    return str(parameters)


def _quantization(name: str) -> dict[str, Any] | None:
    """`bits_per_weight` is the nominal figure, as in LM Studio: 4 for `Q4_K_M`."""
    if not name:
        return None
    bits = _BITS.search(name.upper())
    return {"name": name, "bits_per_weight": int(bits[1]) if bits else None}


def _describe_instance(card: Card, loaded: Loaded) -> dict[str, Any]:
    return {"id": instance_id(card, loaded), "config": describe_config(card, loaded)}


def describe_config(card: Card, loaded: Loaded) -> dict[str, Any]:
    """What it was loaded with, as far as that is not left to llama-server; context and slots as they turned out."""
    config = {name: loaded.options[ours] for name, ours in OPTIONS.items() if ours in loaded.options}
    config["context_length"] = loaded.context_tokens
    config["parallel"] = loaded.slots
    # The word for "where it works" is none of LM Studio's.
    if config.get("flash_attention") == "auto":
        del config["flash_attention"]
    if is_embedding(card):
        del config["parallel"]
    return config


def _capabilities(card: Card) -> dict[str, Any]:
    content: dict[str, Any] = {
        "vision": "vision" in card.capabilities,
        "trained_for_tool_use": "tools" in card.capabilities,
    }
    options = reasoning_options(card.architecture, card.capabilities)
    if options:
        default = "medium" if "medium" in options else "on"
        content["reasoning"] = {"allowed_options": options, "default": default}
    return content

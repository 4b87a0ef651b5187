"""What Ollama's lists say of every model (reference: api-dialects, 5.8)."""

from typing import Any, Final

from llamaherd_gateway.dialects.dialect import Card

UNKNOWN: Final = "unknown"
"""Clients want something to stand in these places."""

_CAPABILITIES: Final = ("completion", "tools", "insert", "vision", "audio", "embedding", "thinking")
"""In the order they are told."""
_SCALES: Final = ((1_000_000_000, "B", 1), (1_000_000, "M", 2), (1_000, "K", 0))
"""(from how many, letter, decimals unless the number is whole)"""


def render_details(card: Card) -> dict[str, Any]:
    family = card.architecture or UNKNOWN
    details: dict[str, Any] = {
        "parent_model": card.model if card.name != card.model else "",
        "format": "gguf",
        "family": family,
        "families": [family],
        "parameter_size": render_count(card.parameters) if card.parameters else UNKNOWN,
        "quantization_level": card.quantization or UNKNOWN,
    }
    if card.context_tokens:
        details["context_length"] = card.context_tokens
    return details


def render_capabilities(card: Card) -> list[str]:
    return [capability for capability in _CAPABILITIES if capability in card.capabilities]


def render_count(number: int) -> str:
    """e.g. `8.0B`, `7B`, `494.03M`"""
    for scale, letter, decimals in _SCALES:
        if number >= scale:
            return f"{number / scale:.{0 if number % scale == 0 else decimals}f}{letter}"
    return str(number)

"""A response as clients see it: what it repeats of its request, and the whole of one that is complete."""

from collections.abc import Mapping
from typing import Any, Final

from llamaherd_gateway.dialects.openai.fields import is_whole_number
from llamaherd_gateway.problems import BadRequest
from llamaherd_shared.events.turn import TurnKept

_SECOND_NS: Final = 1_000_000_000


def echo(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What a response repeats of its request. Raises `BadRequest`."""
    limit = fields.get("max_output_tokens")
    if limit is not None and not (is_whole_number(limit) and limit >= 1):
        said = "`max_output_tokens` must be a whole number from 1"
        raise BadRequest(said, param="max_output_tokens", code="invalid_value")
    alternatives = fields.get("top_logprobs")
    if alternatives is not None and not (is_whole_number(alternatives) and alternatives >= 0):
        said = "`top_logprobs` must be a whole number from 0"
        raise BadRequest(said, param="top_logprobs", code="invalid_value")
    text, reasoning = fields.get("text"), fields.get("reasoning")
    return {
        "instructions": fields.get("instructions"),
        "max_output_tokens": limit,
        "max_tool_calls": fields.get("max_tool_calls"),
        "metadata": fields.get("metadata") or {},
        "parallel_tool_calls": fields.get("parallel_tool_calls") is not False,
        "reasoning": {"effort": None, "summary": None, **(reasoning if isinstance(reasoning, dict) else {})},
        "safety_identifier": fields.get("safety_identifier"),
        "temperature": fields.get("temperature"),
        "text": {"format": {"type": "text"}, **(text if isinstance(text, dict) else {})},
        "tool_choice": fields.get("tool_choice") or "auto",
        "tools": fields.get("tools") or [],
        "top_logprobs": alternatives or 0,
        "top_p": fields.get("top_p"),
        "truncation": fields.get("truncation") or "disabled",
        "user": fields.get("user"),
    }


def render_frame(turn: TurnKept, *, store: bool) -> dict[str, Any]:
    """What is the same from a response's first event to its last. `store`: whether it can be gone on from."""
    return {
        "id": turn.response,
        "object": "response",
        "created_at": turn.asked_ns // _SECOND_NS,
        "model": turn.model,
        "background": False,
        "previous_response_id": turn.previous or None,
        "service_tier": "default",
        "store": store,
        **(turn.echoed or echo({})),
    }


def render_response(turn: TurnKept, *, store: bool = True) -> dict[str, Any]:
    """A response that is complete."""
    return {
        **render_frame(turn, store=store),
        "status": "incomplete" if turn.cut else "completed",
        "completed_at": None if turn.cut else turn.at_ns // _SECOND_NS,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if turn.cut else None,
        "output": turn.output,
        "usage": turn.usage,
    }


def usage_of(
    prompt_tokens: int, completion_tokens: int, *, cached_tokens: int = 0, reasoning_tokens: int = 0
) -> dict[str, Any]:
    """`cached_tokens` are some of the prompt's, `reasoning_tokens` (llama-server does not tell) of the completion's."""
    return {
        "input_tokens": prompt_tokens,
        "input_tokens_details": {"cached_tokens": cached_tokens, "cache_write_tokens": 0},
        "output_tokens": completion_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
        "total_tokens": prompt_tokens + completion_tokens,
    }

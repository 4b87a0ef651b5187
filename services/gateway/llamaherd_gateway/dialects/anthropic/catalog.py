"""`GET /v1/models` and `/v1/models/{id}` in Anthropic's shape (reference: api-dialects, 4)."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from llamaherd_gateway.dialects.dialect import Card, Herd, PageRequest, Reply
from llamaherd_gateway.problems import BadRequest
from llamaherd_shared.errors import NotFound

DEFAULT_LIMIT: Final = 20
MAX_LIMIT: Final = 1000


def list_models(request: PageRequest, herd: Herd) -> Reply:
    """One page, in the order of the names. Raises `BadRequest` for a limit or a cursor that makes no sense."""
    cards = _answering(herd)
    limit = _limit(request.query.get("limit"))
    before, after = request.query.get("before_id"), request.query.get("after_id")
    if before and after:
        raise BadRequest("after_id and before_id cannot both be given", param="after_id")
    if before:
        rest = cards[: _position(cards, before, "before_id")]
        page = rest[-limit:]
    else:
        rest = cards[_position(cards, after, "after_id") + 1 :] if after else cards
        page = rest[:limit]
    content = {
        "data": [_render(card) for card in page],
        "has_more": len(page) < len(rest),
        "first_id": page[0].name if page else None,
        "last_id": page[-1].name if page else None,
    }
    return Reply(body=msgspec.json.encode(content))


def show_model(request: PageRequest, herd: Herd) -> Reply:
    """Raises `NotFound`."""
    name = request.parameters["model"]
    for card in _answering(herd):
        if card.name == name:
            return Reply(body=msgspec.json.encode(_render(card)))
    raise NotFound(f"model: {name} is not known; GET /v1/models lists those that are")


def _answering(herd: Herd) -> list[Card]:
    """Models that can answer a message."""
    return [card for card in herd.cards if "completion" in card.capabilities]


def _limit(text: str | None) -> int:
    limit = int(text) if text and text.isascii() and text.isdecimal() and len(text) < 10 else 0
    if text and not 1 <= limit <= MAX_LIMIT:
        raise BadRequest(f"limit: must be a whole number from 1 to {MAX_LIMIT}", param="limit")
    return limit or DEFAULT_LIMIT


def _position(cards: Sequence[Card], name: str, parameter: str) -> int:
    for position, card in enumerate(cards):
        if card.name == name:
            return position
    raise BadRequest(f"{parameter}: no model is named `{name}`", param=parameter)


def _render(card: Card) -> dict[str, Any]:
    """The context is that of a slot when the model is loaded: what a prompt must fit into."""
    loaded = max((instance.context_tokens for instance in card.loaded), default=0)
    created = datetime.fromtimestamp(card.modified_ns // 1_000_000_000, UTC)
    return {
        "type": "model",
        "id": card.name,
        "display_name": card.title or card.name,
        "created_at": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "active",
        "max_input_tokens": loaded or card.context_tokens or None,
    }

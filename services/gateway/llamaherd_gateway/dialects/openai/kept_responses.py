"""Responses that were kept: how a request goes on from one, and what clients are shown of it."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from llamaherd_gateway.dialects.openai.response_frame import render_response
from llamaherd_gateway.problems import BadRequest
from llamaherd_shared.events.turn import TurnKept

SETTING: Final = "`gateway.conversations` is off"
_PREFIXES: Final = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}
"""Of the ids of items, by their type."""
MOST_LISTED: Final = 100
NAMED: Final = 128
"""Characters of an id that an error repeats: clients may write anything there."""


def items_of(turns: Sequence[TurnKept]) -> list[dict[str, Any]]:
    """What was said in these turns, as if a client sent it all at once."""
    return [item for turn in turns for item in (*turn.input, *turn.output)]


def previous_missing(response: str) -> BadRequest:
    text = f"Previous response with id '{response[:NAMED]}' not found."
    return BadRequest(text, code="previous_response_not_found", param="previous_response_id")


def response_missing(response: str) -> BadRequest:
    return BadRequest(f"Response with id '{response[:NAMED]}' not found.", status=404, param="response_id")


def not_kept() -> BadRequest:
    text = f"`previous_response_id` is not supported: responses are not kept here ({SETTING}): "
    text += "send the whole conversation as `input`"
    return BadRequest(text, code="unsupported_parameter", param="previous_response_id")


def not_in_background() -> BadRequest:
    return BadRequest("Cannot cancel a synchronous response.", param="response_id")


def show_response(turn: TurnKept, query: Mapping[str, str]) -> bytes:
    """Raises `BadRequest`."""
    if query.get("stream", "false").lower() not in ("false", "0", ""):
        text = "`stream` is for responses in the background, which are not made here: leave it out"
        raise BadRequest(text, code="unsupported_parameter", param="stream")
    return msgspec.json.encode(render_response(turn))


def show_deleted(response: str) -> bytes:
    return msgspec.json.encode({"id": response, "object": "response", "deleted": True})


def list_input(turns: Sequence[TurnKept], query: Mapping[str, str]) -> bytes:
    """All that the last one of these turns answered to: earlier turns, then its own input. Raises `BadRequest`."""
    items = [item for turn in turns[:-1] for item in (*_input_of(turn), *turn.output)]
    items += _input_of(turns[-1])
    limit, order, after = _limit(query.get("limit", "20")), query.get("order", "desc"), query.get("after")
    if order not in ("asc", "desc"):
        raise BadRequest("`order` must be asc or desc", code="invalid_value", param="order")
    if order == "desc":
        items.reverse()
    if after:
        items = items[_place_of(after, items) + 1 :]
    page = items[:limit]
    ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
    return msgspec.json.encode({"object": "list", "data": page, **ends, "has_more": len(items) > limit})


def _input_of(turn: TurnKept) -> list[dict[str, Any]]:
    """With what clients may leave out: type, id, status, and content in parts."""
    number = turn.response.partition("_")[2]
    items = []
    for place, item in enumerate(turn.input):
        kind = item.get("type", "message")
        made = {"id": f"{_PREFIXES.get(kind, 'item')}_{number}i{place}", "type": kind, "status": "completed"}
        # What is `null` was left out, too.
        shown = made | {name: value for name, value in item.items() if value is not None}
        if isinstance(item.get("content"), str):
            shown["content"] = [_part(item["content"], item.get("role"))]
        items.append(shown)
    return items


def _part(text: str, role: Any) -> dict[str, Any]:
    if role == "assistant":
        return {"type": "output_text", "text": text, "annotations": []}
    return {"type": "input_text", "text": text}


def _limit(text: str) -> int:
    if not (text.isdecimal() and len(text) <= len(str(MOST_LISTED)) and 1 <= int(text) <= MOST_LISTED):
        raise BadRequest(f"`limit` must be a whole number from 1 to {MOST_LISTED}", code="invalid_value", param="limit")
    return int(text)


def _place_of(wanted: str, items: Sequence[dict[str, Any]]) -> int:
    for place, item in enumerate(items):
        if item["id"] == wanted:
            return place
    text = f"no item of this response's input has the id '{wanted[:NAMED]}'"
    raise BadRequest(text, code="invalid_value", param="after")

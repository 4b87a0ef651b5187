"""`POST /v1/responses` and `/v1/responses/input_tokens`: nothing is stored, every request brings its conversation."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from llamaherd_gateway.bodies import decode_body, model_of
from llamaherd_gateway.dialects.dialect import Asked, Call, Facts, Header, Route, Turn
from llamaherd_gateway.dialects.openai.errors import OPENAI
from llamaherd_gateway.dialects.openai.fields import is_whole_number
from llamaherd_gateway.dialects.openai.response_input import chat_of
from llamaherd_gateway.dialects.openai.response_output import Response
from llamaherd_gateway.problems import BadRequest

PATH: Final = "/v1/responses"
_FIELDS: Final = msgspec.json.Decoder(dict[str, Any])


def read_response(body: bytes, headers: Sequence[Header] = ()) -> Asked:
    """Raises `BadRequest`."""
    fields = decode_body(_FIELDS, body)
    model = model_of(fields.get("model"))
    chat = chat_of(fields)
    return Asked(
        model=model, stream=fields.get("stream") is True, body=msgspec.json.encode(chat), content=_echoed(fields)
    )


def call_response(asked: Asked, facts: Facts, turn: Turn) -> Call:
    return Call(path="/v1/chat/completions", body=asked.body, translation=Response(asked, turn))


def call_count(asked: Asked, facts: Facts, turn: Turn) -> Call:
    """llama-server answers this as OpenAI would."""
    return Call(path="/v1/chat/completions/input_tokens", body=asked.body)


def _echoed(fields: dict[str, Any]) -> dict[str, Any]:
    """What a response repeats of its request."""
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


ROUTES: Final = (
    Route(
        path=PATH,
        dialect=OPENAI,
        read=read_response,
        call=call_response,
        about="An answer in the shape of OpenAI's Responses API; nothing is stored",
        example='{"model": "cria", "input": "Hello", "max_output_tokens": 16}',
    ),
    Route(
        path=f"{PATH}/input_tokens",
        dialect=OPENAI,
        read=read_response,
        call=call_count,
        generates=False,
        about="How many tokens a response's input has",
        example='{"model": "cria", "input": "Hello"}',
    ),
)

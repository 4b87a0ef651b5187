"""`POST /v1/responses` and `/v1/responses/input_tokens`: a whole conversation, or what follows a kept response."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from llamaherd_gateway.bodies import decode_body, model_of
from llamaherd_gateway.dialects.dialect import EVENTS, JSON, Asked, Call, Facts, Header, Memory, Route, Turn
from llamaherd_gateway.dialects.openai.errors import OPENAI
from llamaherd_gateway.dialects.openai.kept_responses import items_of, not_kept, previous_missing
from llamaherd_gateway.dialects.openai.response_frame import echo
from llamaherd_gateway.dialects.openai.response_input import chat_of, messages_of
from llamaherd_gateway.dialects.openai.response_output import Response, Wanted
from llamaherd_gateway.problems import BadRequest
from llamaherd_shared.events.turn import TurnKept

PATH: Final = "/v1/responses"
_FIELDS: Final = msgspec.json.Decoder(dict[str, Any])


def read_response(body: bytes, headers: Sequence[Header] = ()) -> Asked:
    """Raises `BadRequest`."""
    fields = decode_body(_FIELDS, body)
    model, store, previous = model_of(fields.get("model")), fields.get("store"), fields.get("previous_response_id")
    chat = msgspec.json.encode(chat_of(fields))
    if not (store is None or isinstance(store, bool)):
        raise BadRequest("`store` must be true or false", param="store", code="invalid_type")
    if not (previous is None or isinstance(previous, str)):
        raise BadRequest("`previous_response_id` must be a text", param="previous_response_id", code="invalid_type")
    said = fields["input"]
    items = [{"type": "message", "role": "user", "content": said}] if isinstance(said, str) else said
    return Asked(
        model=model,
        stream=fields.get("stream") is True,
        keep=store is not False,
        previous=previous or "",
        body=chat,
        text=chat,
        content=Wanted(items, echo(fields), previous or ""),
    )


def resume(asked: Asked, turns: Sequence[TurnKept]) -> Asked:
    """What was said before goes before; what was instructed then holds no longer."""
    wanted: Wanted = asked.content
    chat = _FIELDS.decode(asked.body)
    chat["messages"] = messages_of([*items_of(turns), *wanted.input], wanted.echoed["instructions"])
    body = msgspec.json.encode(chat)
    return msgspec.structs.replace(asked, body=body, text=body)


def call_response(asked: Asked, facts: Facts, turn: Turn) -> Call:
    response = Response(asked, turn)
    return Call(
        path="/v1/chat/completions",
        body=asked.body,
        translation=response,
        keeper=response if asked.keep else None,
    )


def call_count(asked: Asked, facts: Facts, turn: Turn) -> Call:
    """llama-server answers this as OpenAI would."""
    return Call(path="/v1/chat/completions/input_tokens", body=asked.body)


MEMORY: Final = Memory(resume=resume, missing=previous_missing, off=not_kept)

ROUTES: Final = (
    Route(
        path=PATH,
        dialect=OPENAI,
        read=read_response,
        call=call_response,
        needs=("model", "input"),
        gives=(JSON, EVENTS),
        memory=MEMORY,
        about="An answer in the shape of OpenAI's Responses API, kept for a next turn unless `store` is false",
        example='{"model": "cria", "input": "Hello", "max_output_tokens": 16}',
    ),
    Route(
        path=f"{PATH}/input_tokens",
        dialect=OPENAI,
        read=read_response,
        call=call_count,
        needs=("model", "input"),
        memory=MEMORY,
        generates=False,
        about="How many tokens a response's input has",
        example='{"model": "cria", "input": "Hello"}',
    ),
)

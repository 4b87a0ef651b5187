"""`/api/v0`: OpenAI's requests and answers, with LM Studio's figures added to the answers (api-dialects, 6.6)."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final

import msgspec

from llamaherd_gateway.bodies import decode_body
from llamaherd_gateway.dialects.dialect import Asked, Call, Facts, Header, Turn
from llamaherd_gateway.dialects.lmstudio.figures import FiguresAnswer

Read = Callable[[bytes, Sequence[Header]], Asked]
MakeCall = Callable[[Asked, Facts, Turn], Call]

_ASKED_FOR: Final = {"verbose": True, "response_fields": ["stop_type", "truncated"]}
"""Makes llama-server say on its OpenAI routes too why it stopped, under `__verbose`; nothing else is told there."""


class _Own(msgspec.Struct, frozen=True):
    """Fields that OpenAI's requests have not."""

    ttl: Annotated[float, msgspec.Meta(ge=0)] | None = None
    """Seconds that the model stays loaded when nothing is asked of it."""
    draft_model: Any = None
    """Chosen when a model is loaded: a request has no say."""


_OWN: Final = msgspec.json.Decoder(_Own)
_FIELDS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def read_with_ttl(read: Read) -> Read:
    """`Route.read` for what `read` reads, and LM Studio's fields besides."""

    def read_own(body: bytes, headers: Sequence[Header] = ()) -> Asked:
        """Raises `BadRequest`."""
        own = decode_body(_OWN, body)
        if b'"ttl"' in body or b'"draft_model"' in body:
            fields = _FIELDS.decode(body)
            body = msgspec.json.encode({name: fields[name] for name in fields if name not in _Own.__struct_fields__})
        return msgspec.structs.replace(read(body, headers), keep_alive_s=own.ttl, keeps_what_it_loads=True)

    return read_own


def call_with_figures(make: MakeCall) -> MakeCall:
    """`Route.call` for what `make` calls; the answer gets the figures."""

    def call(asked: Asked, facts: Facts, turn: Turn) -> Call:
        made = make(asked, facts, turn)
        body = made.body
        if made.path.startswith("/v1/"):  # its own routes say it anyway
            body = msgspec.json.encode({**_FIELDS.decode(body), **_ASKED_FOR})
        answer = FiguresAnswer(facts, stream=asked.stream, inner=made.translation)
        return msgspec.structs.replace(made, body=body, translation=answer)

    return call

"""Reading a few fields of a request's body and changing them, the rest left as it was written."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from llamaherd_gateway.bodies import decode_body, model_of
from llamaherd_gateway.dialects.dialect import Asked, Facts, Header
from llamaherd_gateway.problems import BadRequest


class _Body(msgspec.Struct):
    model: Any = None
    stream: Any = None


_DECODER: Final = msgspec.json.Decoder(_Body)
_FIELDS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def read_model(body: bytes, headers: Sequence[Header] = ()) -> Asked:
    """The model and whether a stream is wanted; llama-server judges the rest. Raises `BadRequest`."""
    read = decode_body(_DECODER, body)
    return Asked(model=model_of(read.model), stream=read.stream is True, body=body)


def change_fields(body: bytes, changes: Mapping[str, Any]) -> bytes:
    """The body (an object) with these fields set; those set to `None` are left out."""
    fields: dict[str, Any] = {**_FIELDS.decode(body), **changes}
    for name, value in changes.items():
        if value is None:
            del fields[name]
    return msgspec.json.encode(fields)


def clean_stop(stop: Any) -> Any:
    """`stop` without empty strings: llama-server would stop at once at those. `None`: nothing is left."""
    if isinstance(stop, list):
        return [text for text in stop if text != ""] or None
    return stop or None


def holds_empty_stop(stop: Any) -> bool:
    """Whether `clean_stop` would change it."""
    return stop == "" or (isinstance(stop, list) and "" in stop)


def check_choices(count: Any, facts: Facts) -> None:
    """`n` answers are generated side by side, each in a slot. Raises `BadRequest` when there are too few."""
    if isinstance(count, int) and count > facts.slots:
        text = f"`n` is {count}, but {facts.model} answers at most {facts.slots} at a time: ask for fewer choices"
        raise BadRequest(text, param="n", code="invalid_value")


def is_whole_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def objects_in(value: Any) -> list[dict[str, Any]]:
    """The objects of a list, whatever else stands there; none when it is no list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []

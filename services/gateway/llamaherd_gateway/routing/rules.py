"""Parameters of requests that whoever runs the herd decides: set, given when missing, taken out, kept in bounds."""

from typing import Any

import msgspec

from llamaherd_gateway.problems import BadRequest
from llamaherd_shared.model_spec import Rules

_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(dict[str, msgspec.Raw])


def apply_rules(rules: Rules, body: bytes) -> bytes:
    """The body with the rules applied; values they do not touch stay as they were written."""
    try:
        fields: dict[str, Any] = dict(_DECODER.decode(body))
    except msgspec.MsgspecError as error:
        raise BadRequest("the request's body must be a JSON object") from error
    for name in rules.strip:
        fields.pop(name, None)
    for name, value in rules.default.items():
        if bytes(fields.get(name, b"null")) == b"null":
            fields[name] = value
    for name, (lowest, highest) in rules.clamp.items():
        if name in fields:
            fields[name] = _clamp(fields[name], lowest, highest)
    fields.update(rules.set)
    return _ENCODER.encode(fields)


def _clamp(value: Any, lowest: float | None, highest: float | None) -> Any:
    try:
        number = msgspec.json.decode(value) if isinstance(value, msgspec.Raw) else value
    except msgspec.ValidationError:
        return value  # 1e400 is JSON, but no number that could be compared
    if isinstance(number, bool) or not isinstance(number, int | float):
        return value
    if lowest is not None and number < lowest:
        return lowest
    return highest if highest is not None and number > highest else value

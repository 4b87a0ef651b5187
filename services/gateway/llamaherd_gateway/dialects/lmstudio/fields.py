"""The fields a body of LM Studio's v1 may have: anything else is an error there, and clients count on being told."""

from typing import Final

import msgspec

from llamaherd_gateway.bodies import decode_body
from llamaherd_gateway.problems import BadRequest

_DECODER: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def refuse_unknown_fields(body: bytes, shape: type[msgspec.Struct]) -> None:
    """Raises `BadRequest` for a body that is no object, or has a field that `shape` has not."""
    unknown = [field for field in decode_body(_DECODER, body) if field not in shape.__struct_fields__]
    if unknown:
        named = ", ".join(f"'{field[:64]}'" for field in unknown[:8])
        # Clients look for these first words to leave a parameter out and ask again.
        text = f"Unrecognized key(s) in object: {named}; known are {', '.join(shape.__struct_fields__)}"
        raise BadRequest(text, code="unrecognized_keys", param=unknown[0][:64])

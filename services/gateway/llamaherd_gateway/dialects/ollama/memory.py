"""`context` of /api/generate: the conversation so far, as numbers that the client sends back unread.

In Ollama these are tokens of the rendered prompt. Here they are the messages themselves, three bytes of UTF-8 JSON to
a number: so they go through the model's chat template again, thoughts are told apart from answers as always, and
nobody has to be asked for tokens. A client that keeps them in 32 bits is fine.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from llamaherd_gateway.problems import BadRequest

_MARK: Final = 0x4C4C484D
"""First number of ours; no vocabulary has so many tokens, so it cannot be another server's."""
_BYTES: Final = 3


class Said(msgspec.Struct, array_like=True):
    """One message that was said."""

    role: str
    content: str


_DECODER: Final = msgspec.json.Decoder(list[Said])


def render_context(turns: Sequence[Said]) -> list[int]:
    data = msgspec.json.encode(turns)
    data += b" " * (-len(data) % _BYTES)
    return [_MARK, *(int.from_bytes(data[at : at + _BYTES], "big") for at in range(0, len(data), _BYTES))]


def read_context(numbers: Sequence[int]) -> list[Said]:
    """Raises `BadRequest` for what was not made here."""
    if not numbers:
        return []
    try:
        if numbers[0] != _MARK:
            raise ValueError
        return _DECODER.decode(b"".join(number.to_bytes(_BYTES, "big") for number in numbers[1:]))
    except (ValueError, OverflowError, RecursionError) as error:
        text = "`context` was not made by this server; leave it out, or use /api/chat, which replaces it"
        raise BadRequest(text, param="context", code="invalid_context") from error

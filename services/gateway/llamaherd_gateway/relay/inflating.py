"""Request bodies that arrive compressed (RFC 9110, section 8.4): unpacked within the limit for plain ones."""

import zlib
from typing import Final

from llamaherd_gateway.problems import BadRequest

_WINDOWS: Final = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}
"""`wbits` by content coding: 16 more than the window's size means gzip's wrapping."""


def is_inflatable(encoding: bytes) -> bool:
    """Whether `inflate` knows this content coding (lower case)."""
    return encoding in _WINDOWS or encoding == b"identity"


def inflate(body: bytes, encoding: bytes, *, limit: int) -> bytes:
    """The plain body. Raises `BadRequest`: 400 when it is no such data, 413 when it would be larger than `limit`."""
    if encoding == b"identity":
        return body
    unpacker = zlib.decompressobj(_WINDOWS[encoding])
    try:
        plain = unpacker.decompress(body, limit + 1)
    except zlib.error as error:
        raise BadRequest(f"the request's body is not valid {encoding.decode()}: {error}") from error
    if len(plain) > limit:
        text = f"the request's body is larger than {limit} bytes once unpacked (`gateway.max_body_bytes`)"
        raise BadRequest(text, status=413)
    if not unpacker.eof:
        raise BadRequest(f"the request's body is not valid {encoding.decode()}: it ends too early")
    return plain

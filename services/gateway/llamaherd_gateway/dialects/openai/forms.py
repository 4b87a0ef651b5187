"""Multipart forms (RFC 7578): where each field's value stands in the body. Files are not copied."""

import re
from collections.abc import Sequence
from typing import Final

from llamaherd_gateway.dialects.dialect import Header
from llamaherd_gateway.problems import BadRequest

PARTS: Final = 64
"""More parts than any form has."""
HEADER_BYTES: Final = 8192
"""Of one part."""
_BOUNDARY: Final = re.compile(rb'(?i)^multipart/form-data\b.*;\s*boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))')
_NAME: Final = re.compile(rb'(?i)[;\s]name="((?:[^"\\\r\n]|\\.)*)"|[;\s]name=([^\s;"]+)')


def content_type_of(headers: Sequence[Header]) -> bytes:
    """Empty when there is none."""
    return next((value for name, value in headers if name == b"content-type"), b"")


def find_fields(body: bytes, content_type: bytes) -> dict[str, slice]:
    """Name -> place of the value; the first of several. Raises `BadRequest`."""
    found = _BOUNDARY.match(content_type)
    if found is None:
        raise _broken("send it as multipart/form-data with a boundary", status=415)
    delimiter = b"--" + (found[1] or found[2])
    at = body.find(delimiter)
    if at < 0 or (at and body[at - 2 : at] != b"\r\n"):
        raise _broken("its boundary is not to be found")
    at += len(delimiter)
    fields: dict[str, slice] = {}
    for _ in range(PARTS):
        if body.startswith(b"--", at):
            return fields
        headers_end = body.find(b"\r\n\r\n", at, at + HEADER_BYTES)
        end = body.find(b"\r\n" + delimiter, max(headers_end, 0))
        if headers_end < 0 or end < 0:
            raise _broken("it ends too early")
        name = _NAME.search(body, at, headers_end)
        if name is not None:
            value = slice(headers_end + 4, max(end, headers_end + 4))
            fields.setdefault((name[1] or name[2] or b"").decode("utf-8", "replace"), value)
        at = end + 2 + len(delimiter)
    raise _broken(f"it has more than {PARTS} parts")


def _broken(text: str, *, status: int = 400) -> BadRequest:
    return BadRequest(f"the request's form cannot be read: {text}", status=status, code="invalid_form")

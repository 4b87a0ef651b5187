"""HTTP heads: which headers go where, and their bytes (RFC 9110, section 7.6.1 on what must not be forwarded)."""

from functools import lru_cache
from http import HTTPStatus
from typing import Final

import msgspec

Header = tuple[bytes, bytes]

FORWARDED: Final = frozenset({b"accept", b"tracestate"})
"""Request headers that reach llama-server beside the body's type: nothing else of them means anything to it.

Never forwarded, and the reason for a closed list: the client's credentials; `X-Conversation-Id`, which makes a
generation survive its client; `Accept-Encoding`, as usage is read from the answer; hop-by-hop headers.
"""

NOT_RETURNED: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"content-length",
        b"server",
        b"date",
        b"x-accel-buffering",
    }
)
"""Response headers that are ours to say. `Access-Control-*` is dropped as well: a browser must not see two."""

_STATUS_LINES: Final = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}


class Head(msgspec.Struct, frozen=True):
    """Of an answer of llama-server's."""

    status: int
    lines: bytes = b""
    """Whole header lines: those that may be forwarded."""
    length: int | None = None
    """Of the body; `None`: chunked, or ended by the connection's end."""
    event_stream: bool = False
    chunked: bool = False
    keeps: bool = False
    """Whether it has a length, and the connection stays open behind it."""
    max_requests: int | None = None
    """Answers on one connection at most; `None`: it does not say."""

    @property
    def ends_with_connection(self) -> bool:
        return self.length is None and not self.chunked


def read_head(data: bytes) -> Head:
    """What the head of an answer says. Raises `ValueError`.

    `data`: up to and including the empty line; HTTP's parser has accepted it.
    """
    start, *headers = data.removesuffix(b"\r\n\r\n").split(b"\r\n")
    version, code = start.split(b" ", 2)[:2]
    status = int(code)
    found: dict[bytes, bytes] = {}
    lines = b""
    for header in headers:
        name, _, value = header.partition(b":")
        name, value = name.strip().lower(), value.strip()
        found[name] = b"%b, %b" % (found[name], value) if name in found else value
        if keep_header(name):
            lines += b"%b: %b\r\n" % (name, value)
    chunked = found.get(b"transfer-encoding", b"").lower().endswith(b"chunked")
    length = int(found[b"content-length"]) if b"content-length" in found and not chunked else None
    open_behind = version == b"HTTP/1.1" and b"close" not in found.get(b"connection", b"").lower()
    return Head(
        status=status,
        lines=lines,
        length=length,
        chunked=chunked,
        event_stream=found.get(b"content-type", b"").startswith(b"text/event-stream"),
        keeps=status >= 200 and length is not None and open_behind,
        max_requests=_announced_max(found.get(b"keep-alive", b"")),
    )


def _announced_max(value: bytes) -> int | None:
    """`max` of a `Keep-Alive` header."""
    for part in value.split(b","):
        name, _, number = part.strip().partition(b"=")
        if name == b"max" and number.isdigit():
            return int(number)
    return None


def render_request_start(method: str, path: str, host: str, port: int, key: str) -> bytes:
    """The part of a request's head that is the same for all requests of one path to one instance."""
    return b"%s %s HTTP/1.1\r\nhost: %s:%d\r\nauthorization: Bearer %s\r\n" % (
        method.encode(),
        path.encode("latin-1"),
        (f"[{host}]" if ":" in host else host).encode(),
        port,
        key.encode(),
    )


def render_request_end(forwarded: bytes, content_type: bytes, traceparent: bytes, length: int) -> bytes:
    """The rest of it, up to the body; `forwarded` are whole header lines."""
    return b"%bcontent-type: %s\r\ntraceparent: %s\r\ncontent-length: %d\r\n\r\n" % (
        forwarded,
        content_type,
        traceparent,
        length,
    )


def keep_header(name: bytes) -> bool:
    """Whether a llama-server's response header (lower case) goes to the client."""
    return name not in NOT_RETURNED and not name.startswith(b"access-control-")


@lru_cache(maxsize=64)
def render_headers(headers: tuple[Header, ...]) -> bytes:
    """Whole header lines. Remembered: what browsers are told is the same for most requests."""
    return b"".join(b"%b: %b\r\n" % header for header in headers)


def render_status_line(status: int) -> bytes:
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d Unknown\r\n" % status

"""HTTP heads: which headers go where, and their bytes (RFC 9110, section 7.6.1 on what must not be forwarded)."""

from functools import lru_cache
from http import HTTPStatus
from typing import Final

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

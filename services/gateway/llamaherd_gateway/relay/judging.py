"""What a request's head says, whatever its length and its trace: where it goes, whose it is, or why it is refused.

A client sends the same head again and again on one connection, which therefore remembers the last one.
"""

import re
from collections.abc import Sequence
from typing import Final

import msgspec

from llamaherd_gateway.access.gate import Access
from llamaherd_gateway.access.guard import Guard, Unacceptable
from llamaherd_gateway.access.keys import Key
from llamaherd_gateway.dialects.dialect import Route
from llamaherd_gateway.problems import Problem, problem_of
from llamaherd_gateway.relay.heads import FORWARDED, Header, render_headers
from llamaherd_gateway.relay.inflating import is_inflatable
from llamaherd_shared.errors import HerdError

PROGRESS: Final = b"x-llamaherd-progress"
_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]+)[ \t]*\r\n", re.IGNORECASE)
_DIGITS: Final = 18
"""Of a length, at most: more would not be a number that HTTP's parser takes."""
_ASKED_FOR: Final = FORWARDED | {b"content-type", b"content-encoding", b"expect", PROGRESS}


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """A head on a hot route."""

    route: Route
    target: str
    """Path and query."""
    path: str
    """Without the query."""
    headers: Sequence[Header]
    """Without `Content-Length` and `Traceparent`."""
    keep_alive: bool
    http_1_0: bool
    cors: bytes
    """Header lines of the answer that tell a browser which pages may read it."""
    key: Key | None = None
    """Whose request it is."""
    refusal: Problem | None = None
    forwarded: bytes = b""
    """Header lines that go to llama-server."""
    content_type: bytes = b""
    encoding: bytes = b""
    expects_continue: bool = False
    wants_progress: bool = False
    """The client asked to be told how the waiting goes (`X-Llamaherd-Progress`)."""

    @property
    def lasts(self) -> bool:
        """Whether the same head will mean the same for as long as the herd stays as it is."""
        return self.refusal is None and (self.key is None or self.key.expires_ns is None)


class KnownHead(msgspec.Struct, frozen=True):
    """A head, byte for byte as HTTP's parser took it, but for the digits of its `Content-Length`."""

    judged: Judged
    before: bytes
    """The digits."""
    after: bytes
    """Them, down to the empty line."""

    def body_of(self, data: bytes) -> bytes | None:
        """The body, when `data` is one whole request with this head; `None`: it has to be parsed."""
        if not data.startswith(self.before):
            return None
        at = len(self.before)
        end = data.find(b"\r", at, at + _DIGITS + 1)
        digits = data[at:end]
        if end < 0 or not digits.isdigit() or not data.startswith(self.after, end):
            return None
        body = data[end + len(self.after) :]
        return body if len(body) == int(digits) else None


def know_head(data: bytes, judged: Judged) -> KnownHead | None:
    """The head of a request that has been parsed and judged; `None` when `data` is not all of one."""
    end = data.find(b"\r\n\r\n") + 4
    length = _LENGTH.search(data, 0, end)
    if length is None or len(data) - end != int(length[1]):
        return None
    return KnownHead(judged, data[: length.start(1)], data[length.end(1) : end])


def judge_page(guard: Guard, headers: Sequence[Header], *, http_1_0: bool) -> tuple[Header, ...]:
    """What concerns hot and other routes alike: headers that tell a browser which pages may read the answer.

    Raises `Unacceptable` for a head that means different things to different readers, and for others' pages.
    """
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) != 1 and (hosts or not http_1_0):
        # RFC 9112, section 3.2: such a message may mean one thing here and another to a proxy in front.
        raise Unacceptable(Problem(status=400, message=f"the request has {len(hosts)} Host headers, not one"))
    origins = [value for name, value in headers if name == b"origin"]
    return guard.judge(hosts[0] if hosts else None, origins[-1] if origins else None)


def judge(
    access: Access,
    route: Route,
    target: bytes,
    headers: Sequence[Header],
    cors: tuple[Header, ...],
    *,
    keep_alive: bool,
    http_1_0: bool,
) -> Judged:
    """Everything that can be known before the body arrives."""
    found = {name: value for name, value in headers if name in _ASKED_FOR}
    encoding = found.get(b"content-encoding", b"").lower().strip()
    key, refusal = None, None
    if encoding and not is_inflatable(encoding):
        text = f"the request's body is encoded as {encoding.decode('latin-1')}: send it plain or as gzip"
        refusal = Problem(status=415, message=text)
    try:
        key = access.identify(headers)
        access.check_route(key, route)
    except HerdError as error:
        refusal = problem_of(error)
    return Judged(
        route=route,
        target=target.decode("latin-1"),
        path=target.partition(b"?")[0].decode("latin-1"),
        headers=headers,
        keep_alive=keep_alive,
        http_1_0=http_1_0,
        cors=render_headers(cors),
        key=key,
        refusal=refusal,
        forwarded=b"".join(b"%b: %b\r\n" % header for header in headers if header[0] in FORWARDED),
        content_type=found.get(b"content-type", b""),
        encoding=encoding,
        expects_continue=found.get(b"expect", b"").lower() == b"100-continue",
        wants_progress=PROGRESS in found,
    )

"""Where a live stream stands, as text (`<stream_id>:<events>.<requests>.<logs>`), and how it is written out.

The format of the messages is the WHATWG HTML standard's, section 9.2 (server-sent events).
"""

import hashlib
import re
from collections.abc import Iterable
from typing import Final

import msgspec

from llamaherd_shared.errors import Rejected

_ID: Final = re.compile(r"([0-9a-f]{12}):(\d{1,19})\.(\d{1,19})\.(\d{1,19})")

PLACE_BITS: Final = 10
"""Requests and log lines come in packs; their id = (stream sequence << 10) + place in the pack."""

TOPICS: Final = ("fleet", "requests", "logs", "metrics")


class BadPosition(Rejected):
    """An id that no stream of ours has given."""


class Position(msgspec.Struct, frozen=True):
    """The last message of each stream that a client has."""

    stream_id: str
    events: int = 0
    requests: int = 0
    """Id of the last request, so that a pack can be cut in two."""
    line: int = 0
    """The same of the last log line (`StoredLine.id`)."""

    def __str__(self) -> str:
        return f"{self.stream_id}:{self.events}.{self.requests}.{self.line}"


def first_id(sequence: int) -> int:
    """The id of the first, or only, thing in the message at `sequence`; the others count up from it."""
    return sequence << PLACE_BITS


def last_id(sequence: int) -> int:
    """The largest id anything in that message can have; 0 before the first message."""
    return first_id(sequence + 1) - 1 if sequence else 0


def sequence_of(id_: int) -> int:
    return id_ >> PLACE_BITS


def name_streams(created: Iterable[str]) -> str:
    """A short name for exactly these streams: differs when one of them was made anew."""
    return hashlib.sha256("\n".join(created).encode()).hexdigest()[:12]


def parse_position(text: str) -> Position:
    found = _ID.fullmatch(text.strip())
    if found is None:
        raise BadPosition(f"`after` is no position of this stream: {text[:60]!r}; take `resume` of /api/v1/fleet")
    return Position(found[1], int(found[2]), int(found[3]), int(found[4]))


def pick_position(stream_id: str, offered: Iterable[str | None]) -> Position | None:
    """The furthest position among those offered (header, query); `None` when none was.

    One of other streams counts only when none is of ours: the caller sees it by its `stream_id`.
    """
    positions = [parse_position(text) for text in offered if text]
    ours = [position for position in positions if position.stream_id == stream_id]
    if not ours:
        return positions[0] if positions else None
    return Position(
        stream_id,
        max(position.events for position in ours),
        max(position.requests for position in ours),
        max(position.line for position in ours),
    )


def parse_topics(text: str | None) -> frozenset[str]:
    """`fleet,logs` -> both; nothing -> all."""
    topics = frozenset(part.strip() for part in (text or "").split(",") if part.strip()) or frozenset(TOPICS)
    unknown = topics.difference(TOPICS)
    if unknown:
        raise Rejected(f"unknown topic {', '.join(sorted(unknown))}; there are {', '.join(TOPICS)}")
    return topics


def render_message(name: str, data: bytes, *, position: Position | None = None) -> bytes:
    """One server-sent event. `data` is JSON, in which line ends are only white space."""
    if b"\n" in data or b"\r" in data:
        data = data.replace(b"\n", b" ").replace(b"\r", b" ")
    head = f"id: {position}\nevent: {name}\n" if position is not None else f"event: {name}\n"
    return head.encode() + b"data: " + data + b"\n\n"


def render_comment(text: str) -> bytes:
    """A line clients ignore: it keeps proxies from closing a silent stream."""
    return f": {text}\n\n".encode()

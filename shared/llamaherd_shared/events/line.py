"""Log lines, packed. Telemetry, not facts: never decide anything from them. MessagePack on the wire.

Written by: every service. Read by: logs, ui.
"""

from typing import Final, Literal

import msgspec

Level = Literal["debug", "info", "warning", "error"]
LEVELS: Final[tuple[Level, ...]] = ("debug", "info", "warning", "error")
"""Ordered by severity."""


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One line of one source."""

    at_ns: int
    """When the line was written or read, Unix nanoseconds."""
    level: Level
    text: str
    trace_id: str = ""


class LinePack(msgspec.Struct, frozen=True, kw_only=True):
    """At most 200 lines or 64 KiB of one source, sent within 50 ms of the first."""

    node: str
    service: str
    """`gateway`, `supervisor` ...; `llama-server` for the lines of an instance."""
    unit: str
    """The service's process id, or `<model>/<index>` for an instance."""
    first: int
    """Number of the first line: counts the lines of this source since its start, so that a reader sees losses."""
    dropped: int = 0
    """Lines given up before this pack because the bus was away too long."""
    generation: int = 0
    """Of an instance: the spawn in whose log file the last line stands, below 0 that of the router; 0 for lines from no
    file."""
    read_bytes: int = 0
    """Where in that file the last line ends: there whoever comes after a killed reader goes on."""
    lines: list[Line]


MAX_LINES: Final = 200
MAX_BYTES: Final = 64 * 1024

_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(LinePack)


def encode_lines(pack: LinePack) -> bytes:
    return _ENCODER.encode(pack)


def decode_lines(data: bytes) -> LinePack:
    """Raises `msgspec.MsgspecError` for bytes that are no pack."""
    return _DECODER.decode(data)

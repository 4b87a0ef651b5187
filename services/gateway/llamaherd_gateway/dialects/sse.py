"""Server-sent events (WHATWG HTML, section 9.2) as bytes: taking a stream apart, putting records together."""

from typing import Any

import msgspec


class Events:
    """Splits a stream into events, however its bytes were cut. Comments (llama-server's pings) are swallowed."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> list[tuple[str, bytes]]:
        """(name, data) of every event that is complete now; the name is empty when none was given."""
        data = self._held + data
        # A lone CR at the end may be half of a CRLF.
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n")
        *whole, self._held = data.split(b"\n\n")
        return [event for block in whole if (event := _parse(block)) is not None]


def _parse(block: bytes) -> tuple[str, bytes] | None:
    name, lines = "", []
    for line in block.split(b"\n"):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            lines.append(value)
        elif field == b"event":
            name = value.decode("utf-8", "replace")
    return (name, b"\n".join(lines)) if lines else None


def render_event(content: Any, name: str = "") -> bytes:
    """One event with JSON data."""
    data = msgspec.json.encode(content)
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data) if name else b"data: %b\n\n" % data

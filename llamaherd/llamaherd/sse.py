"""Server-sent events (WHATWG HTML, section 9.2), from lines to events."""

from collections.abc import Iterable, Iterator

import msgspec


class ServerSent(msgspec.Struct, frozen=True):
    event: str
    data: str
    id: str
    """Last id seen, on this event or an earlier one."""


def parse_events(lines: Iterable[str]) -> Iterator[ServerSent]:
    """Every event with data; comments and unknown fields are skipped."""
    name, last_id = "message", ""
    data: list[str] = []
    for line in lines:
        if not line:
            if data:
                yield ServerSent(name, "\n".join(data), last_id)
            name, data = "message", []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match field:
            case "event":
                name = value
            case "data":
                data.append(value)
            case "id":
                last_id = value

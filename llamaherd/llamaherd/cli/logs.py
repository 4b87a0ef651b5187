"""`llamaherd logs`."""

import time
from datetime import datetime
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter

from llamaherd.cli.options import Json, Url, open_client
from llamaherd.client import Client
from llamaherd.console import Screen, print_json
from llamaherd.failures import OK
from llamaherd.fleet import line_matches, stream_position
from llamaherd.units import parse_duration
from llamaherd.words import render_line
from llamaherd_shared.commands import StoredLine
from llamaherd_shared.events.line import Level


def logs(
    *,
    follow: Annotated[bool, Parameter(alias="-f", negative="", help="Go on with every new line until Ctrl-C.")] = False,
    level: Annotated[Level, Parameter(help="This level and what is worse.")] = "debug",
    source: Annotated[
        str | None, Parameter(help="A service (gateway), or a model for its llama-server (cria).")
    ] = None,
    since: Annotated[str | None, Parameter(help="Only the last 30s, 10m, 1h30m, 2d.")] = None,
    grep: Annotated[str | None, Parameter(help="Words that all occur in the line.")] = None,
    tail: Annotated[int, Parameter(alias="-n", help="How many lines from before.")] = 100,
    url: Url = None,
    json: Json = False,
) -> int:
    """Show log lines of every service and llama-server, oldest first.

    The newest 100 without options. Examples: `llamaherd logs -f --level warning`,
    `llamaherd logs --source cria --since 10m --grep "slot released"`.
    """
    view = _View(Screen(), json=json)
    from_ns = time.time_ns() - int(parse_duration(since) * 1e9) if since is not None else None
    with open_client(url) as client:
        fleet = client.fleet() if follow else None
        found = _stored(client, text=grep, min_level=level, source=source, from_ns=from_ns, limit=tail)
        for line in found:
            view.show(line)
        if fleet is None:
            return OK
        last = found[-1].id if found else 0
        # The stored lines may be ahead of the ui's own position, or behind: start at the earlier, skip what was shown.
        position = stream_position(fleet, logs=min(last >> 10, fleet.at.get("HERD_LOGS", 0)) if found else None)
        for event in client.stream(topics="logs", after=position):
            if event.event == "gap":
                view.gap(msgspec.json.decode(event.data))
            elif event.event == "line":
                line = msgspec.json.decode(event.data, type=StoredLine)
                if line.id > last and line_matches(line, text=grep, min_level=level, source=source):
                    last = line.id
                    view.show(line)
    return OK


def _stored(client: Client, *, source: str | None, limit: int, **query: Any) -> list[StoredLine]:
    """The newest lines, oldest first. A source that is no service is taken for a model."""
    if limit <= 0:
        return []
    page = client.lines(**query, limit=limit, service=source)
    if not page.lines and source is not None:
        unit = source if "/" in source else f"{source}/0"
        page = client.lines(**query, limit=limit, unit=unit)
    return sorted(page.lines, key=lambda line: line.id)


class _View:
    def __init__(self, screen: Screen, *, json: bool) -> None:
        self._screen, self._json = screen, json

    def show(self, line: StoredLine) -> None:
        if self._json:
            print_json(line)
            return
        clock = datetime.fromtimestamp(line.at_ns / 1e9).astimezone()
        self._screen.say(render_line(line, clock=f"{clock:%H:%M:%S}.{clock.microsecond // 1000:03}"))

    def gap(self, missing: dict[str, Any]) -> None:
        if self._json:
            print_json({"gap": missing})
        else:
            count = missing.get("last", 0) - missing.get("first", 0) + 1
            self._screen.warn(f"-- {count} messages are not kept any more --")

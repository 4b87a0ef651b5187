"""`llamaherd events`."""

from datetime import datetime
from typing import Annotated, Any, Final

import msgspec
from cyclopts import Parameter

from llamaherd.cli.options import Json, Url, open_client
from llamaherd.client import Client
from llamaherd.console import Screen, print_json
from llamaherd.failures import OK
from llamaherd.fleet import stream_position
from llamaherd.words import render_event

PAGE: Final = 500
FROM_SEQ: Final = "Start at this sequence; 1 is the first fact. Default: the last 50."


def events(
    *,
    follow: Annotated[bool, Parameter(alias="-f", negative="", help="Go on with every new fact until Ctrl-C.")] = False,
    from_seq: Annotated[int | None, Parameter(help=FROM_SEQ)] = None,
    url: Url = None,
    json: Json = False,
) -> int:
    """Show the facts of the herd, in order: models found, llama-servers started, ready, gone.

    Nothing is ever changed or left out in this log. Requests are not in it; they have a stream of their own.
    """
    view = _View(Screen(), json=json)
    with open_client(url) as client:
        fleet = client.fleet()
        after = max(0, from_seq - 1) if from_seq is not None else max(0, fleet.at.get("HERD_EVENTS", 0) - 50)
        after = _show_stored(client, view, after)
        if not follow:
            return OK
        for event in client.stream(topics="fleet", after=stream_position(fleet, events=after)):
            if event.event == "gap":
                view.gap(msgspec.json.decode(event.data))
            elif event.event == "fact":
                fact = msgspec.json.decode(event.data)
                if fact["sequence"] > after:
                    after = fact["sequence"]
                    view.show({**fact.pop("event"), **fact})
    return OK


def _show_stored(client: Client, view: "_View", after: int) -> int:
    """Everything that is kept after a sequence; returns the last one."""
    page_after: int | None = after
    while page_after is not None:
        facts, page_after = client.events(after=page_after, limit=PAGE)
        for fact in facts:
            view.show(fact)
            after = fact["sequence"]
        if not facts:
            break
    return after


class _View:
    def __init__(self, screen: Screen, *, json: bool) -> None:
        self._screen, self._json = screen, json

    def show(self, fact: dict[str, Any]) -> None:
        if self._json:
            print_json(fact)
        else:
            clock = datetime.fromtimestamp(fact.get("at_ns", 0) / 1e9).astimezone()
            self._screen.say(render_event(fact, clock=f"{clock:%Y-%m-%d %H:%M:%S}"))

    def gap(self, missing: dict[str, Any]) -> None:
        if self._json:
            print_json({"gap": missing})
        else:
            self._screen.warn(f"-- facts {missing.get('first')} to {missing.get('last')} are not kept any more --")

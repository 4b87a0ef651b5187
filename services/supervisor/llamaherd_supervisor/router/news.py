"""What a router tells of its models, as news of their processes. Pure.

It tells by events (`GET /models/sse`), by its listing (`GET /models`) and by its log. Events that nobody listened to
are gone, so a listing comes first; only the log says that a model had to make room. Recorded from llama-server
11434.0.0.
"""

import itertools
import re
from typing import Final, TypeVar

import msgspec

_T = TypeVar("_T")

_RUNNING: Final = frozenset({"loading", "loaded", "sleeping"})
"""Statuses of a model that has a process. One that sleeps has given its memory back, and wakes by itself."""
_MADE_ROOM: Final = re.compile(r" (?:evicting idle LRU|models_max limit reached, removing LRU) name=(?P<model>.+)$")
_FOR_A_REQUEST: Final = " for a queued request"


class Came(msgspec.Struct, frozen=True):
    """It has a process now."""

    model: str


class Advanced(msgspec.Struct, frozen=True):
    """Its load goes on."""

    model: str
    share: float
    """Of the weights, projector and draft model included, 0 to 1."""


class Went(msgspec.Struct, frozen=True):
    """Its process is gone."""

    model: str
    exit_code: int | None = None
    """As the router tells it: 1 after a signal; `None`: it did not tell."""
    told_to: bool = False
    """The router told it to end: we had asked for that, or another model needed the room."""


News = Came | Advanced | Went


class Told(msgspec.Struct, frozen=True):
    """What a router has told so far."""

    running: frozenset[str] = frozenset()
    """Models with a process."""
    leaving: frozenset[str] = frozenset()
    """Those of them that make room for another one."""


class _Progress(msgspec.Struct):
    stages: list[str] = []
    current: str = ""
    value: float = 0.0


class _Status(msgspec.Struct):
    status: str = ""
    exit_code: int | None = None
    progress: _Progress | None = None


class _Event(msgspec.Struct):
    model: str = ""
    event: str = ""
    data: msgspec.Raw = msgspec.Raw(b"{}")
    """Its shape depends on the event: a download's progress has addresses as names."""


class _Value(msgspec.Struct):
    value: str = ""
    args: list[str] = []
    exit_code: int | None = None


class _Listed(msgspec.Struct):
    id: str
    status: _Value


class _Listing(msgspec.Struct):
    data: list[_Listed]


_EVENT: Final = msgspec.json.Decoder(_Event)
_STATUS: Final = msgspec.json.Decoder(_Status)
_LISTING: Final = msgspec.json.Decoder(_Listing)


def read_event(told: Told, data: bytes) -> tuple[Told, list[News]]:
    """Take one event in: the JSON behind `data:`. What is no news of a process changes nothing."""
    event = _decode(_EVENT, data)
    if event is None or event.event not in ("model_status", "status_change"):
        return told, []
    said = _decode(_STATUS, bytes(event.data))
    return (told, []) if said is None else _read_status(told, event.model, said)


def read_listing(told: Told, data: bytes) -> tuple[Told, list[News]]:
    """Take all in that holds now: the body of `GET /models`."""
    listing = _decode(_LISTING, data)
    if listing is None:
        return told, []
    news: list[News] = []
    for entry in listing.data:
        said = _Status(entry.status.value, entry.status.exit_code)
        told, more = _read_status(told, entry.id, said)
        news += more
    for model in told.running - {entry.id for entry in listing.data}:
        told, more = _read_status(told, model, _Status("unloaded"))
        news += more
    return told, news


def forget(told: Told, model: str) -> Told:
    """As if it had not been told of, so that a listing tells again."""
    return Told(told.running - {model}, told.leaving - {model})


def read_ports(data: bytes) -> dict[str, int]:
    """Model -> port its newest process was told to listen on, from the body of `GET /models`."""
    listing = _decode(_LISTING, data)
    ports = {}
    for entry in listing.data if listing is not None else ():
        for flag, value in itertools.pairwise(entry.status.args):
            if flag == "--port" and value.isdigit():
                ports[entry.id] = int(value)
    return ports


def read_line(told: Told, line: str) -> Told:
    """Take one line of the router's own log in."""
    found = _MADE_ROOM.search(line)
    if found is None:
        return told
    model = found["model"].removesuffix(_FOR_A_REQUEST)
    return msgspec.structs.replace(told, leaving=told.leaving | {model}) if model in told.running else told


def _read_status(told: Told, model: str, said: _Status) -> tuple[Told, list[News]]:
    if said.status in _RUNNING:
        news: list[News] = [] if model in told.running else [Came(model)]
        if said.status == "loading" and said.progress is not None:
            news.append(Advanced(model, _share(said.progress)))
        return msgspec.structs.replace(told, running=told.running | {model}), news
    if said.status != "unloaded" or model not in told.running:
        return told, []
    # One that is told to and does not heed it is killed.
    told_to = said.exit_code == 0 or model in told.leaving
    return Told(told.running - {model}, told.leaving - {model}), [Went(model, said.exit_code, told_to)]


def _share(progress: _Progress) -> float:
    """The stages come one after the other; how long each takes is not told."""
    before = progress.stages.index(progress.current) if progress.current in progress.stages else 0
    return min(1.0, (before + progress.value) / max(1, len(progress.stages)))


def _decode(decoder: "msgspec.json.Decoder[_T]", data: bytes) -> _T | None:
    try:
        return decoder.decode(data)
    except msgspec.MsgspecError:
        return None

"""Facts, one module per entity. A fact is past tense, immutable, and its tag is its name on the wire.

Adding a field means giving it a default; a changed meaning is a new tag (`.v2`) beside the old one.
"""

from typing import Final, get_args

import msgspec

from llamaherd_shared.events.access import AccessEvent
from llamaherd_shared.events.alias import AliasEvent
from llamaherd_shared.events.instance import InstanceEvent
from llamaherd_shared.events.model import ModelEvent
from llamaherd_shared.events.node import NodeEvent
from llamaherd_shared.events.placement import PlacementDecided
from llamaherd_shared.events.pull import PullEvent
from llamaherd_shared.events.request import RequestEvent
from llamaherd_shared.events.turn import TurnKept

Event = (
    AccessEvent
    | AliasEvent
    | InstanceEvent
    | ModelEvent
    | NodeEvent
    | PlacementDecided
    | PullEvent
    | RequestEvent
    | TurnKept
)
"""Every fact stored as JSON on `HERD_EVENTS`, `HERD_REQUESTS` and `HERD_CONVERSATIONS`."""


class UnknownEvent(Exception):
    """A type this version does not know: a reader counts it and goes on."""

    def __init__(self, type_: str) -> None:
        super().__init__(f"unknown event type {type_!r}")
        self.type = type_


class Undecodable(Exception):
    """Bytes that are no event at all: a reader keeps them aside and goes on."""


class _Tag(msgspec.Struct):
    type: str


_DECODER: Final[msgspec.json.Decoder[Event]] = msgspec.json.Decoder(Event)
_TAG_DECODER: Final = msgspec.json.Decoder(_Tag)
_ENCODER: Final = msgspec.json.Encoder()


def event_type(event: Event | type[Event]) -> str:
    """The name on the wire, e.g. `instance.ready.v1`."""
    tag = event.__struct_config__.tag
    assert isinstance(tag, str)
    return tag


TYPES: Final[dict[str, type[Event]]] = {event_type(cls): cls for cls in get_args(Event)}
"""Every known event by its name on the wire."""


def encode_event(event: Event) -> bytes:
    return _ENCODER.encode(event)


def decode_event(data: bytes) -> Event:
    """Decode one fact. Raises `UnknownEvent` for a tag from the future, `Undecodable` for anything else."""
    try:
        return _DECODER.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        try:
            type_ = _TAG_DECODER.decode(data).type
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise Undecodable(str(error)) from error
        if type_ not in TYPES:
            raise UnknownEvent(type_) from error
        raise Undecodable(f"{type_}: {error}") from error

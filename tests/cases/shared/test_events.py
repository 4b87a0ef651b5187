import json
from pathlib import Path
from typing import Any

import pytest

from llamaherd_shared.events import TYPES, Undecodable, UnknownEvent, decode_event, encode_event, event_type
from llamaherd_shared.events.instance import InstanceReady

GOLDEN = Path(__file__).parents[2] / "golden" / "events"
"""One recorded message per event version. They stay decodable for ever; a new version gets a new file."""

READY = InstanceReady(node="n", model="m", at_ns=1, load_s=0.5, slots=4, context_tokens=2048)


def test_every_event_version_has_a_recorded_message() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(TYPES)


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.json")), ids=lambda path: path.stem)
def test_recorded_message_still_decodes_to_what_it_said(path: Path) -> None:
    recorded = json.loads(path.read_bytes())

    event = decode_event(path.read_bytes())

    assert event_type(event) == path.stem
    again = json.loads(encode_event(event))
    assert holds(again, recorded)


def holds(whole: Any, part: Any) -> bool:
    """Whether everything recorded is there; fields that came later may be as well, at any depth."""
    match part:
        case dict():
            return all(name in whole and holds(whole[name], value) for name, value in part.items())
        case list():
            return len(whole) == len(part) and all(map(holds, whole, part))
        case _:
            return bool(whole == part)


def test_fields_from_the_future_are_ignored() -> None:
    future = encode_event(READY).replace(b"}", b',"new_field":1}')

    assert decode_event(future) == READY


def test_a_type_from_the_future_is_told_apart_from_garbage() -> None:
    with pytest.raises(UnknownEvent, match=r"instance\.cloned\.v9"):
        decode_event(b'{"type":"instance.cloned.v9","node":"n"}')
    for garbage in (b"", b"\xff\x00", b"[]", b'{"node":"n"}', b'{"type":"instance.ready.v1"}', b'{"type":"\xff"}'):
        with pytest.raises(Undecodable):
            decode_event(garbage)


def test_the_name_on_the_wire_is_the_tag() -> None:
    assert event_type(InstanceReady) == "instance.ready.v1"
    assert b'"type":"instance.ready.v1"' in encode_event(READY)

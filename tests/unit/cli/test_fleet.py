"""What the command line makes of the ui's answers."""

import msgspec
import pytest

from llamaherd.fleet import Fleet, Model, line_matches, stream_position
from llamaherd_shared.commands import StoredLine
from llamaherd_shared.events.line import Level


def make_line(text: str = "slot 0 released", level: Level = "info", **named: str) -> StoredLine:
    place = {"service": "llama-server", "unit": "cria/0"} | named
    return StoredLine(id=1, node="box", at_ns=0, level=level, text=text, **place)


def test_an_answer_of_a_newer_ui_is_understood() -> None:
    body = b'{"models":[{"model":"m","node":"n","new_field":1,"instance":{"state":"loading","ratio":0.5}}],"more":{}}'

    fleet = msgspec.json.decode(body, type=Fleet)

    assert fleet.models[0].state == "loading"


def test_state_of_a_model_without_instance() -> None:
    assert Model(model="m", node="n").state == "stopped"
    assert Model(model="m", node="n", rejected="truncated").state == "rejected"


def test_a_stream_is_continued_where_the_answer_stands_or_where_told() -> None:
    fleet = Fleet(stream_id="s", at={"HERD_EVENTS": 7, "HERD_REQUESTS": 5, "HERD_LOGS": 3})

    assert stream_position(fleet) == "s:7.5.3"
    assert stream_position(fleet, logs=0, events=2) == "s:2.5.0"


@pytest.mark.parametrize("source", [None, "llama-server", "cria/0", "cria"])
def test_a_source_is_a_service_an_instance_or_a_model(source: str | None) -> None:
    assert line_matches(make_line(), text=None, min_level="debug", source=source)
    assert not line_matches(make_line(unit="other/0", service="x"), text=None, min_level="debug", source="cria")


def test_all_words_must_occur_and_the_level_must_be_reached() -> None:
    assert line_matches(make_line(), text='Released "slot"', min_level="info", source=None)
    assert not line_matches(make_line(), text="released crash", min_level="info", source=None)
    assert not line_matches(make_line(), text=None, min_level="warning", source=None)

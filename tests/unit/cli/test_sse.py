"""Server-sent events, from lines to events."""

from llamaherd.sse import ServerSent, parse_events


def test_events_keep_name_data_and_the_last_id() -> None:
    text = ": hello\n\nid: s:1.0.0\nevent: fact\ndata: {}\n\ndata: a\ndata: b\n\n"

    events = list(parse_events(text.split("\n")))

    assert events == [ServerSent("fact", "{}", "s:1.0.0"), ServerSent("message", "a\nb", "s:1.0.0")]


def test_an_event_without_data_or_cut_off_is_none() -> None:
    assert list(parse_events(["event: fact", "", "data: half"])) == []

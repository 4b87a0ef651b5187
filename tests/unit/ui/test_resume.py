"""Where a stream stands, as text."""

import pytest

from llamaherd_shared.errors import Rejected
from llamaherd_ui.resume import (
    Position,
    first_id,
    last_id,
    name_streams,
    parse_position,
    parse_topics,
    pick_position,
    render_comment,
    render_message,
    sequence_of,
)

OURS, OTHER = "0123456789ab", "ba9876543210"


def test_position_survives_the_way_over_the_wire() -> None:
    position = Position(OURS, 3, 20, 5121)

    assert parse_position(str(position)) == position


@pytest.mark.parametrize(
    "text", ["", "x", f"{OURS}:1.2", f"{OURS}:1.2.x", f"{OURS}:1.2.3.4", "zz:1.2.3", f"{OURS}:-1.2.3"]
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(Rejected, match="no position of this stream"):
        parse_position(text)


def test_the_larger_of_header_and_query_wins_stream_by_stream() -> None:
    picked = pick_position(OURS, [f"{OURS}:5.1.9", f"{OURS}:4.2.0"])

    assert picked == Position(OURS, 5, 2, 9)


def test_a_position_of_ours_wins_over_a_foreign_one() -> None:
    assert pick_position(OURS, [f"{OTHER}:9.9.9", f"{OURS}:1.1.1"]) == Position(OURS, 1, 1, 1)


def test_a_foreign_position_alone_is_handed_on_to_be_reset() -> None:
    assert pick_position(OURS, [f"{OTHER}:9.9.9", None]) == Position(OTHER, 9, 9, 9)


def test_no_position_at_all_means_from_now_on() -> None:
    assert pick_position(OURS, [None, ""]) is None


def test_streams_made_anew_have_another_name() -> None:
    first, again, other = name_streams(["a", "b"]), name_streams(["a", "b"]), name_streams(["a", "c"])

    assert first == again != other
    assert parse_position(f"{first}:0.0.0").stream_id == first


def test_topics_default_to_all() -> None:
    assert parse_topics(None) == parse_topics("") == {"fleet", "requests", "logs", "metrics"}
    assert parse_topics("logs, fleet") == {"fleet", "logs"}


def test_unknown_topic_is_refused_with_the_known_ones() -> None:
    with pytest.raises(Rejected, match=r"unknown topic foo; there are fleet, requests, logs, metrics"):
        parse_topics("logs,foo")


def test_message_is_one_server_sent_event() -> None:
    message = render_message("fact", b'{"a":1}', position=Position(OURS, 1, 2, 3))

    assert message == f'id: {OURS}:1.2.3\nevent: fact\ndata: {{"a":1}}\n\n'.encode()


def test_line_ends_in_json_cannot_end_the_event() -> None:
    assert render_message("fact", b'{\r\n "a": 1\n}') == b'event: fact\ndata: {   "a": 1 }\n\n'


def test_comment_is_no_event() -> None:
    assert render_comment("still here") == b": still here\n\n"


@pytest.mark.parametrize("sequence", [1, 2, 10**12])
def test_ids_of_a_message_lie_between_its_neighbours(sequence: int) -> None:
    assert last_id(sequence - 1) < first_id(sequence) < last_id(sequence) < first_id(sequence + 1)
    assert sequence_of(first_id(sequence)) == sequence_of(last_id(sequence)) == sequence


def test_nothing_has_come_before_the_first_message() -> None:
    assert last_id(0) == 0

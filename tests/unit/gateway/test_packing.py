"""Which events leave in one message."""

from llamaherd_gateway.relay.packing import Backlog
from llamaherd_shared.events import decode_event, encode_event
from llamaherd_shared.events.request import MAX_BYTES, MAX_REQUESTS, RequestFinished, requests_of


def add(backlog: Backlog, subject: str, *numbers: int, error: str | None = None) -> None:
    for number in numbers:
        event = RequestFinished(
            request_id=f"r{number}", at_ns=1, node="n", model="m", route="/", status=200, outcome="ok", error=error
        )
        assert backlog.add(subject, event.request_id, encode_event(event))


def take_all(backlog: Backlog) -> list[tuple[str, str, list[str]]]:
    """Subject, message id and request ids of every message."""
    found = []
    while (parcel := backlog.next()) is not None:
        ids = [request.request_id for request in requests_of(decode_event(parcel.payload))]
        assert len(ids) == parcel.count
        found.append((parcel.subject, parcel.message_id, ids))
        backlog.done(parcel)
    return found


def test_requests_of_a_subject_leave_together_and_a_single_one_as_it_is() -> None:
    backlog = Backlog(100)
    add(backlog, "a", 1, 2)
    add(backlog, "b", 3)
    add(backlog, "a", 4)

    assert take_all(backlog) == [("a", "r1+", ["r1", "r2", "r4"]), ("b", "r3", ["r3"])]
    assert len(backlog) == 0


def test_what_the_bus_had_no_room_for_stays_and_is_packed_with_what_comes() -> None:
    backlog = Backlog(100)
    add(backlog, "a", 1)
    assert backlog.next() is not None

    add(backlog, "a", 2)

    assert take_all(backlog) == [("a", "r1+", ["r1", "r2"])]


def test_a_pack_is_limited_and_nobody_waits_behind_a_flood() -> None:
    backlog = Backlog(1000)
    add(backlog, "flood", *range(MAX_REQUESTS + 5))
    add(backlog, "other", 999)

    taken = [(subject, len(ids)) for subject, _, ids in take_all(backlog)]

    assert taken == [("flood", MAX_REQUESTS), ("other", 1), ("flood", 5)]


def test_a_pack_is_limited_in_bytes() -> None:
    backlog = Backlog(100)
    add(backlog, "a", 1, 2, 3, error="x" * (MAX_BYTES // 2 - 500))
    add(backlog, "a", 4, error="x" * (MAX_BYTES * 2))
    add(backlog, "a", 5)

    taken = [ids for _, _, ids in take_all(backlog)]

    assert taken == [["r1", "r2"], ["r3"], ["r4"], ["r5"]]


def test_beyond_the_bound_nothing_is_taken() -> None:
    backlog = Backlog(2)
    add(backlog, "a", 1, 2)

    assert not backlog.add("b", "r3", b"{}")
    assert [ids for _, _, ids in take_all(backlog)] == [["r1", "r2"]]
    assert backlog.add("b", "r4", b"{}")

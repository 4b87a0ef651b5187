"""Queues: who goes, who waits, and in which order."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamaherd_gateway.routing.admission import Admission, QueueFull


class Request:
    def __init__(self, party: str, number: int, log: "list[Request]") -> None:
        self.party, self.number, self._log = party, number, log

    def admitted(self) -> None:
        self._log.append(self)


def queued(*parties: str, capacity: int = 1, limit: int = 100) -> tuple[Admission, list[Request], list[Request]]:
    """One request per entry, asked for in this order; (queues, requests, those that were admitted)."""
    admission, log = Admission(limit), []
    admission.set_capacity({"m": capacity})
    requests = [Request(party, number, log) for number, party in enumerate(parties)]
    for request in requests:
        if admission.enter("m", request.party, request):
            log.append(request)
    return admission, requests, log


def drained(admission: Admission, log: list[Request]) -> list[str]:
    """The order in which all of them get their turn."""
    for _ in range(1000):
        if not admission.waiting("m"):
            break
        admission.leave("m")
    return [f"{request.party}{request.number}" for request in log]


def test_free_slots_are_given_at_once_and_the_rest_waits() -> None:
    admission, _, log = queued("a", "a", "a", capacity=2)

    assert [request.number for request in log] == [0, 1]
    assert admission.waiting("m") == 1


def test_parties_take_turns_and_each_keeps_its_order() -> None:
    admission, _, log = queued("a", "a", "a", "a", "b", "c", "b")

    assert drained(admission, log) == ["a0", "a1", "b4", "c5", "a2", "b6", "a3"]


def test_a_model_without_an_instance_lets_nobody_in_until_it_has_one() -> None:
    admission, requests, log = queued("a", "b", capacity=0)
    assert [admission.position("m", request.party, request) for request in requests] == [1, 2]

    admission.set_capacity({"m": 4})

    assert log == requests


def test_who_gives_up_leaves_the_line_and_nobody_else_notices() -> None:
    admission, requests, log = queued("a", "b", "c")

    admission.withdraw("m", "b", requests[1])
    admission.withdraw("m", "b", requests[1])

    assert drained(admission, log) == ["a0", "c2"]


def test_a_full_queue_refuses() -> None:
    admission, _, log = queued("a", "b", limit=1)

    with pytest.raises(QueueFull):
        admission.enter("m", "c", Request("c", 9, log))


def test_a_lost_instance_takes_its_slots_with_it() -> None:
    admission, _, log = queued("a", "b", "c", capacity=2)

    admission.set_capacity({})
    admission.leave("m")
    admission.leave("m")

    assert [request.number for request in log] == [0, 1]
    admission.set_capacity({"m": 1})
    assert [request.number for request in log] == [0, 1, 2]


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=12),
    st.integers(1, 3),
    st.lists(st.integers(0, 11), max_size=3),
)
def test_positions_tell_the_order_in_which_turns_will_come(parties: list[str], capacity: int, gone: list[int]) -> None:
    admission, requests, log = queued(*parties, capacity=capacity)
    for number in gone:
        if number < len(requests):
            admission.withdraw("m", requests[number].party, requests[number])
    waiting = [request for request in requests if admission.position("m", request.party, request)]
    told = sorted(waiting, key=lambda request: admission.position("m", request.party, request))
    assert [admission.position("m", request.party, request) for request in told] == list(range(1, len(told) + 1))
    before = len(log)

    drained(admission, log)

    assert log[before:] == told


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(["enter", "leave", "more", "fewer", "withdraw"]), st.integers(0, 5))))
def test_never_more_at_work_than_slots_and_nobody_waits_beside_a_free_one(steps: list[tuple[str, int]]) -> None:
    admission, log = Admission(50), []
    admission.set_capacity({"m": 2})
    capacity, active, asked = 2, 0, []
    for step, number in steps:
        admitted = len(log)
        if step == "enter" and admission.waiting("m") < 50:
            request = Request("abc"[number % 3], number, log)
            asked.append(request)
            if admission.enter("m", request.party, request):
                log.append(request)
        elif step == "leave" and active:
            admission.leave("m")
            active -= 1
        elif step == "withdraw" and asked:
            admission.withdraw("m", asked[number % len(asked)].party, asked[number % len(asked)])
        elif step in ("more", "fewer"):
            capacity = number if step == "fewer" else capacity + number
            admission.set_capacity({"m": capacity})
        new = len(log) - admitted
        active += new
        assert new == 0 or active <= capacity
        assert admission.waiting("m") == 0 or active >= capacity

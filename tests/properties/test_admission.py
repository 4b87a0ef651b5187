"""Queues keep their promises, whoever comes, goes or gives up."""

from hypothesis import given, settings
from hypothesis import strategies as st

from harness.queues import Request, drained, queued
from llamaherd_gateway.routing.admission import Admission


@settings(max_examples=500, deadline=None)
@given(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=12),
    st.integers(1, 3),
    st.lists(st.integers(0, 11), max_size=3),
)
def test_positions_tell_the_order_in_which_turns_will_come(parties: list[str], capacity: int, gone: list[int]) -> None:
    admission, requests, log = queued(*parties, capacity=capacity)
    for number in gone:
        if number < len(requests):
            admission.withdraw("m", requests[number])
    waiting = [request for request in requests if admission.position("m", request)]
    told = sorted(waiting, key=lambda request: admission.position("m", request))
    assert [admission.position("m", request) for request in told] == list(range(1, len(told) + 1))
    before = len(log)

    drained(admission, log)

    assert log[before:] == told


@settings(max_examples=500, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["enter", "leave", "more", "fewer", "withdraw"]), st.integers(0, 5))))
def test_never_more_at_work_than_slots_and_nobody_waits_beside_a_free_one(steps: list[tuple[str, int]]) -> None:
    admission = Admission(50)
    asked: list[Request] = []
    log: list[Request] = []
    admission.set_capacity({"m": 2})
    capacity, active = 2, 0
    for step, number in steps:
        admitted = len(log)
        if step == "enter" and admission.waiting("m") < 50:
            request = Request("abc"[number % 3], number, log)
            asked.append(request)
            if admission.enter("m", request):
                log.append(request)
        elif step == "leave" and active:
            admission.leave("m")
            active -= 1
        elif step == "withdraw" and asked:
            admission.withdraw("m", asked[number % len(asked)])
        elif step in ("more", "fewer"):
            capacity = number if step == "fewer" else capacity + number
            admission.set_capacity({"m": capacity})
        new = len(log) - admitted
        active += new
        assert new == 0 or active <= capacity
        assert admission.waiting("m") == 0 or active >= capacity

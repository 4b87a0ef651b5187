"""Queues: who goes, who waits, and in which order."""

import pytest

from harness.queues import Request, drained, queued
from llamaherd_gateway.routing.admission import QueueFull


def test_free_slots_are_given_at_once_and_the_rest_waits() -> None:
    admission, _, log = queued("a", "a", "a", capacity=2)

    assert [request.number for request in log] == [0, 1]
    assert admission.waiting("m") == 1


def test_parties_take_turns_and_each_keeps_its_order() -> None:
    admission, _, log = queued("a", "a", "a", "a", "b", "c", "b")

    assert drained(admission, log) == ["a0", "a1", "b4", "c5", "a2", "b6", "a3"]


def test_a_model_without_an_instance_lets_nobody_in_until_it_has_one() -> None:
    admission, requests, log = queued("a", "b", capacity=0)
    assert [admission.position("m", request) for request in requests] == [1, 2]

    admission.set_capacity({"m": 4})

    assert log == requests


def test_who_gives_up_leaves_the_line_and_nobody_else_notices() -> None:
    admission, requests, log = queued("a", "b", "c")

    admission.withdraw("m", requests[1])
    admission.withdraw("m", requests[1])

    assert drained(admission, log) == ["a0", "c2"]


def test_a_full_queue_refuses() -> None:
    admission, _, log = queued("a", "b", limit=1)

    with pytest.raises(QueueFull):
        admission.enter("m", Request("c", 9, log))


def test_a_lost_instance_takes_its_slots_with_it() -> None:
    admission, _, log = queued("a", "b", "c", capacity=2)

    admission.set_capacity({})
    admission.leave("m")
    admission.leave("m")

    assert [request.number for request in log] == [0, 1]
    admission.set_capacity({"m": 1})
    assert [request.number for request in log] == [0, 1, 2]

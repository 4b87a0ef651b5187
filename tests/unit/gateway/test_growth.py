"""When requests that wait lead to one more instance."""

from collections.abc import Collection

import pytest

from llamaherd_gateway.routing.growth import AFTER_FAILURE_S, AGAIN_S, GROW_AFTER_S, Growth
from llamaherd_shared.model_spec import ModelSpec


def growth(**said: int) -> Growth:
    return Growth(lambda _: ModelSpec(**said))


def due(growth: Growth, now_s: float, *states: str, waiting: Collection[str] = ("m",)) -> list[str]:
    return growth.due(waiting, {"m": states}, now_s)


def test_requests_that_wait_for_a_while_want_one_more_instance() -> None:
    seen = growth(max_replicas=2)

    assert due(seen, 100, "ready") == []
    assert due(seen, 100 + GROW_AFTER_S, "ready") == ["m"]


def test_a_pause_in_the_waiting_begins_it_anew() -> None:
    seen = growth(max_replicas=2)
    due(seen, 100, "ready")

    due(seen, 100.5, "ready", waiting=())
    due(seen, 100.8, "ready")

    assert due(seen, 101.2, "ready") == []
    assert due(seen, 101.8, "ready") == ["m"]


@pytest.mark.parametrize(
    ("states", "wanted"),
    [
        (("ready", "ready"), True),
        (("ready", "stopped", "stopped"), True),
        (("ready", "ready", "ready"), False),
        (("ready", "draining", "stopping"), False),
        (("ready", "loading"), False),
        (("ready", "waiting"), False),
        (("ready", "backoff"), False),
        (("draining",), False),
        ((), False),
    ],
)
def test_one_more_is_wanted_while_there_are_fewer_than_may_be_and_none_is_coming(
    states: tuple[str, ...], wanted: bool
) -> None:
    seen = growth(max_replicas=3)
    due(seen, 100, *states)

    assert bool(due(seen, 110, *states)) is wanted


def test_without_a_limit_in_its_entry_a_model_does_not_grow() -> None:
    seen = growth(replicas=2)
    due(seen, 100, "ready", "ready")

    assert due(seen, 200, "ready", "ready") == []


def test_after_asking_it_is_waited_for() -> None:
    seen = growth(max_replicas=3)
    due(seen, 100, "ready")
    seen.asked("m", 102)

    assert due(seen, 102 + AGAIN_S - 0.1, "ready") == []
    assert due(seen, 102 + AGAIN_S, "ready") == ["m"]


def test_where_there_is_no_room_or_one_has_failed_it_is_not_asked_again_soon() -> None:
    seen = growth(max_replicas=3)
    due(seen, 100, "ready")
    seen.asked("m", 102, refused=True)

    assert due(seen, 102 + AFTER_FAILURE_S - 0.1, "ready") == []
    assert due(seen, 102 + AFTER_FAILURE_S, "ready") == ["m"]

    seen.asked("m", 200)
    assert due(seen, 200 + AFTER_FAILURE_S - 0.1, "ready", "failed") == []
    assert due(seen, 200 + AGAIN_S, "ready") == ["m"]

"""One gateway alone gives all that the limits of a key allow, and no more."""

import pytest

from llamaherd_gateway.access.keys import Key
from llamaherd_gateway.access.limits import JOIN_S, SHARED_S, Limiter, Refusal, problem_of_refusal
from llamaherd_gateway.access.windows import WINDOW_S, Window, free_at
from llamaherd_shared.events.access import KeyLimits
from llamaherd_shared.events.usage import GatewayUsage


def alone(**limits: int) -> tuple[Limiter, Key]:
    """A gateway that has been running for a while."""
    return Limiter("g", -JOIN_S), Key(key="k7q2mzxa", limits=KeyLimits(**limits))


def admit(limiter: Limiter, key: Key, count: int, now_s: float) -> int:
    return sum(limiter.admit(key, now_s) is None for _ in range(count))


def test_a_key_without_limits_is_always_let_in() -> None:
    limiter, key = Limiter("g", 0.0), Key(key="k7q2mzxa")

    assert admit(limiter, key, 10_000, 0.0) == 10_000
    limiter.finish(key, 5, 0.0)
    assert limiter.gossip(0.0) == GatewayUsage("g", [])


def test_alone_a_minute_holds_exactly_what_it_may() -> None:
    limiter, key = alone(requests_per_minute=60)

    assert admit(limiter, key, 100, 0.0) == 60
    assert admit(limiter, key, 1, 59.9) == 0
    assert admit(limiter, key, 100, 60.0) == 60


@pytest.mark.parametrize("per_minute", [1, 7, 60, 600])
def test_a_client_at_exactly_its_rate_is_never_refused(per_minute: int) -> None:
    limiter, key = alone(requests_per_minute=per_minute)

    times = [number * 60 / per_minute for number in range(per_minute + per_minute // 2 + 2)]

    assert all(limiter.admit(key, at_s) is None for at_s in times)


def test_a_refusal_says_when_there_is_room_again() -> None:
    limiter, key = alone(requests_per_minute=2)
    limiter.admit(key, 0.0)
    limiter.admit(key, 10.0)

    refusal = limiter.admit(key, 15.0)

    assert refusal is not None
    assert refusal.retry_after_s == pytest.approx(45.0)
    assert "llh_k7q2mzxa may use 2 requests a minute" in refusal.sentence
    assert not refusal.hold_s
    problem = problem_of_refusal(refusal)
    assert (problem.status, problem.retry_after_s) == (429, 45)
    assert limiter.admit(key, 60.0) is None


def test_who_comes_back_after_the_whole_seconds_of_retry_after_is_let_in() -> None:
    limiter, key = alone(requests_per_minute=1)
    limiter.admit(key, 0.0)

    refusal = limiter.admit(key, 15.6)

    assert refusal is not None
    told = problem_of_refusal(refusal).retry_after_s
    assert told == 45
    assert limiter.admit(key, 15.6 + told) is None
    assert problem_of_refusal(Refusal(0.1, "")).retry_after_s == 1


def test_requests_at_once_are_limited_until_one_ends() -> None:
    limiter, key = alone(concurrency=2)

    assert admit(limiter, key, 5, 0.0) == 2
    limiter.finish(key, 0, 1.0)
    assert admit(limiter, key, 5, 1.0) == 1


def test_what_is_in_flight_is_expected_to_use_what_the_last_ones_used() -> None:
    limiter, key = alone(tokens_per_minute=1000)
    limiter.admit(key, 0.0)
    limiter.finish(key, 400, 1.0)

    # 400 used; one more in flight makes 800; a second would make 1200.
    assert admit(limiter, key, 5, 1.0) == 1
    limiter.finish(key, 100, 2.0)
    assert admit(limiter, key, 5, 2.0) == 1


def test_what_ends_without_saying_what_it_used_counts_as_much_as_the_last_ones() -> None:
    limiter, key = alone(tokens_per_minute=1000)
    limiter.admit(key, 0.0)
    limiter.finish(key, 400, 1.0)

    limiter.admit(key, 1.0)
    limiter.finish(key, None, 2.0)

    assert admit(limiter, key, 1, 2.0) == 0
    told = limiter.gossip(2.0)
    assert told is not None
    assert told.keys[0].tokens == 800


def test_one_request_larger_than_the_limit_is_paid_off_at_the_limits_pace() -> None:
    limiter, key = alone(tokens_per_minute=1000)
    limiter.admit(key, 0.0)
    limiter.finish(key, 5000, 0.0)

    refusal = limiter.admit(key, 1.0)

    assert refusal is not None
    assert refusal.retry_after_s == pytest.approx(5 * 60 - 1.0)
    assert limiter.admit(key, 300.0) is None


def test_ends_that_were_not_let_in_change_nothing() -> None:
    limiter, key = alone(concurrency=1)

    limiter.finish(key, 10, 0.0)

    assert admit(limiter, key, 3, 0.0) == 1


def test_a_message_that_was_lost_takes_nothing_with_it() -> None:
    here, key = alone(requests_per_minute=10)
    there = Limiter("other", -JOIN_S)
    here.hear(there.gossip(0.0) or GatewayUsage("", []), 0.0)
    admit(there, key, 4, 0.1)
    there.gossip(0.2)
    admit(there, key, 4, 0.3)

    told = there.gossip(0.4)
    assert told is not None
    here.hear(told, 0.4)

    refused = here.admit(key, 3.0)
    assert refused is not None
    assert refused.hold_s == SHARED_S
    assert told.keys[0].requests == 8


def test_a_gateway_with_nothing_new_says_only_that_it_lives() -> None:
    limiter, key = alone(requests_per_minute=10)
    limiter.admit(key, 0.0)

    told = [limiter.gossip(at / 10) for at in range(42)]

    said = [usage for usage in told if usage is not None]
    assert len(said) == 3
    assert all(len(usage.keys) == 1 for usage in said)


def test_a_window_forgets_in_order_and_keeps_few_entries() -> None:
    window = Window()
    for number in range(20_000):
        window.add(1, number / 200)

    assert window.total(100.0) == pytest.approx(12_000, abs=20)
    assert len(list(window.endings())) <= 1300
    assert free_at([window], 1e9) is None
    assert window.total(100.0 + WINDOW_S) == 0

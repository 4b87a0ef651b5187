"""Limits of a key hold over all gateways, and one gateway alone gives all of them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.traffic import Traffic, most_in_a_minute
from llamaherd_gateway.access.keys import Key
from llamaherd_gateway.access.limits import (
    BEAT_S,
    FORGET_S,
    JOIN_S,
    SHARED_S,
    Limiter,
    Refusal,
    problem_of_refusal,
)
from llamaherd_gateway.access.windows import WINDOW_S, Window, free_at
from llamaherd_shared.events.access import KeyLimits
from llamaherd_shared.events.usage import GatewayUsage

BURSTS = st.lists(
    st.tuples(
        st.sampled_from([1.0, 1.02, 1.3, 2.0, 5.0, 30.0, 59.9, 61.0, 61.2, 62.5]),
        st.integers(0, 3),
        st.integers(1, 40),
        st.sampled_from([0.0, 0.01, 0.1]),
    ),
    min_size=1,
    max_size=8,
)
"""(begin, gateway, how many requests, seconds between them)"""


def run_bursts(traffic: Traffic, bursts: list[tuple[float, int, int, float]], gateways: int, **request: float) -> None:
    for begin_s, place, count, gap_s in bursts:
        for number in range(count):
            traffic.ask(begin_s + number * gap_s, place % gateways, **request)  # type: ignore[arg-type]
    traffic.run(until_s=70.0)


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


@given(bursts=BURSTS, gateways=st.integers(1, 4), limit=st.sampled_from([1, 3, 10, 20, 60]))
@settings(max_examples=25, deadline=None)
def test_all_gateways_together_let_in_what_one_would(
    bursts: list[tuple[float, int, int, float]], gateways: int, limit: int
) -> None:
    traffic = Traffic(gateways, requests_per_minute=limit)

    run_bursts(traffic, bursts, gateways)

    assert most_in_a_minute((at_s, 1) for at_s in traffic.admitted) <= limit * 1.1
    asked = sum(count for _, _, count, _ in bursts)
    assert len(traffic.admitted) + traffic.refused == asked


@given(bursts=BURSTS, gateways=st.integers(1, 4), limit=st.sampled_from([1, 2, 4, 16]))
@settings(max_examples=15, deadline=None)
def test_all_gateways_together_have_no_more_in_flight_than_one(
    bursts: list[tuple[float, int, int, float]], gateways: int, limit: int
) -> None:
    traffic = Traffic(gateways, concurrency=limit)

    run_bursts(traffic, bursts, gateways, lasts_s=0.7)

    assert traffic.most_in_flight <= limit * 1.1


@given(bursts=BURSTS, gateways=st.integers(1, 4), tokens=st.integers(50, 400))
@settings(max_examples=15, deadline=None)
def test_all_gateways_together_use_no_more_tokens_than_one(
    bursts: list[tuple[float, int, int, float]], gateways: int, tokens: int
) -> None:
    traffic = Traffic(gateways, tokens_per_minute=20_000)
    traffic.ask(0.6, 0, lasts_s=0.1, tokens=tokens)  # so that the size of a request is known

    run_bursts(traffic, bursts, gateways, tokens=tokens)

    assert most_in_a_minute(traffic.spent) <= 20_000 * 1.1


@pytest.mark.parametrize("gateways", [1, 2, 4])
@pytest.mark.parametrize("limit", [5, 60])
def test_a_client_of_one_gateway_has_the_whole_limit(gateways: int, limit: int) -> None:
    traffic = Traffic(gateways, requests_per_minute=limit)
    for number in range(2 * limit):
        traffic.ask(3.0 + number * 0.01, 0)

    traffic.run(until_s=10.0)

    assert len(traffic.admitted) == limit
    assert traffic.longest_wait_s < 1.0


def test_clients_of_all_gateways_get_the_limit_between_them() -> None:
    traffic = Traffic(4, requests_per_minute=60)
    for number in range(400):
        traffic.ask(1.0 + number * 0.015, number % 4)

    traffic.run(until_s=10.0)

    assert 58 <= len(traffic.admitted) <= 66


@pytest.mark.parametrize("limit", [1, 2])
def test_a_client_that_goes_from_gateway_to_gateway_is_not_refused_for_what_has_just_ended(limit: int) -> None:
    """News of an end takes a moment; 429 and a second's wait would slow down whoever stands behind a balancer."""
    traffic = Traffic(2, concurrency=limit)
    traffic.ask(1.0, 0, lasts_s=0.5, then=[1, 0] * 12)

    traffic.run(until_s=60.0)

    assert (len(traffic.admitted), traffic.refused) == (25, 0)
    assert traffic.longest_wait_s < 0.7


def test_what_is_really_under_way_on_another_gateway_is_refused_soon() -> None:
    traffic = Traffic(2, concurrency=1)
    traffic.ask(1.0, 0, lasts_s=10)
    traffic.ask(5.0, 1, lasts_s=10)

    traffic.run(until_s=5.5)

    assert (len(traffic.admitted), traffic.refused) == (1, 1)


def test_a_gateway_that_starts_later_knows_what_was_used() -> None:
    traffic = Traffic(1, requests_per_minute=10)
    for number in range(10):
        traffic.ask(1.0 + number * 0.01, 0)
    traffic.start(1, at_s=5.0)
    traffic.ask(5.01, 1)
    traffic.ask(6.0, 1)

    traffic.run(until_s=10.0)

    assert len(traffic.admitted) == 10


def test_what_a_gone_gateway_used_counts_and_what_it_had_in_flight_is_forgotten() -> None:
    used, held = Traffic(2, requests_per_minute=4), Traffic(2, concurrency=4)
    for traffic in (used, held):
        for number in range(4):
            traffic.ask(1.0 + number * 0.5, 1, lasts_s=1000)
        traffic.stop(1, at_s=4.0)
        traffic.ask(5.0, 0)
        traffic.ask(4.0 + FORGET_S + BEAT_S, 0)
        traffic.run(until_s=20.0)

    assert len(used.admitted) == 4
    assert held.admitted[4:] == [pytest.approx(4.0 + FORGET_S + BEAT_S, abs=0.1)]


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
    for number in range(100_000):
        window.add(1, number / 1000)

    assert window.total(100.0) == pytest.approx(60_000, abs=100)
    assert len(list(window.endings())) <= 1300
    assert free_at([window], 1e9) is None
    assert window.total(100.0 + WINDOW_S) == 0

"""Limits of a key hold over all gateways, whatever is asked of them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.traffic import Traffic, most_in_a_minute
from llamaherd_gateway.access.limits import BEAT_S, FORGET_S

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


@given(bursts=BURSTS, gateways=st.integers(1, 4), limit=st.sampled_from([1, 3, 10, 20, 60]))
@settings(max_examples=200, deadline=None)
def test_all_gateways_together_let_in_what_one_would(
    bursts: list[tuple[float, int, int, float]], gateways: int, limit: int
) -> None:
    traffic = Traffic(gateways, requests_per_minute=limit)

    run_bursts(traffic, bursts, gateways)

    assert most_in_a_minute((at_s, 1) for at_s in traffic.admitted) <= limit * 1.1
    asked = sum(count for _, _, count, _ in bursts)
    assert len(traffic.admitted) + traffic.refused == asked


@given(bursts=BURSTS, gateways=st.integers(1, 4), limit=st.sampled_from([1, 2, 4, 16]))
@settings(max_examples=200, deadline=None)
def test_all_gateways_together_have_no_more_in_flight_than_one(
    bursts: list[tuple[float, int, int, float]], gateways: int, limit: int
) -> None:
    traffic = Traffic(gateways, concurrency=limit)

    run_bursts(traffic, bursts, gateways, lasts_s=0.7)

    assert traffic.most_in_flight <= limit * 1.1


@given(bursts=BURSTS, gateways=st.integers(1, 4), tokens=st.integers(50, 400))
@settings(max_examples=200, deadline=None)
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

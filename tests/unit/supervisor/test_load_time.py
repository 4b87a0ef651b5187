"""Whether a load goes on, and how long it still takes."""

import pytest

from llamaherd_supervisor.load_time import Headway, Signs, estimate_left_s, look_again

MIB = 2**20
BEFORE = Signs(lines=5, resident_bytes=100 * MIB, read_bytes=50 * MIB)
LAST = ((0.05, 1.0), (0.9, 18.0), (1.0, 20.0))
"""Weights from the first to the 18th second, ready after 20."""


@pytest.mark.parametrize(
    "signs",
    [
        Signs(lines=6, resident_bytes=100 * MIB, read_bytes=50 * MIB),
        Signs(lines=5, resident_bytes=101 * MIB, read_bytes=50 * MIB),
        Signs(lines=5, resident_bytes=90 * MIB, read_bytes=51 * MIB),
    ],
    ids=["a line", "memory", "bytes read"],
)
def test_each_sign_alone_is_progress(signs: Signs) -> None:
    assert look_again(Headway(BEFORE, 100.0), signs, after_s=2) == Headway(signs)


def test_what_our_own_probes_cause_is_no_progress() -> None:
    headway = Headway(BEFORE)
    for look in range(1, 4):
        probed = Signs(lines=5, resident_bytes=100 * MIB + look * 4096, read_bytes=50 * MIB + look * 200)
        headway = look_again(headway, probed, after_s=2)

    assert headway.still_s == 6


def test_little_by_little_is_progress_too() -> None:
    headway = Headway(BEFORE)
    slow = [Signs(lines=5, resident_bytes=100 * MIB, read_bytes=50 * MIB + look * MIB // 4) for look in range(1, 5)]
    for signs in slow:
        headway = look_again(headway, signs, after_s=2)

    assert headway == Headway(slow[-1])


def test_memory_that_grows_again_after_a_fall_is_progress() -> None:
    fell = look_again(Headway(BEFORE), Signs(lines=5, resident_bytes=10 * MIB, read_bytes=50 * MIB), after_s=2)
    grew = look_again(fell, Signs(lines=5, resident_bytes=20 * MIB, read_bytes=50 * MIB), after_s=2)

    assert (fell.still_s, grew.still_s) == (2, 0)


def test_nothing_is_foretold_without_a_load_before() -> None:
    assert estimate_left_s((), 0.5, passed_s=3) is None


@pytest.mark.parametrize(
    ("ratio", "passed_s", "left_s"),
    [
        (0.0, 0.0, 20.0),
        (0.05, 1.0, 19.0),
        (0.475, 9.5, 10.5),
        (0.9, 18.0, 2.0),
        (1.0, 20.0, 0.0),
    ],
)
def test_load_at_the_pace_of_the_last_one_ends_like_it(ratio: float, passed_s: float, left_s: float) -> None:
    assert estimate_left_s(LAST, ratio, passed_s=passed_s) == pytest.approx(left_s)


def test_slower_load_takes_longer_to_the_end() -> None:
    left_s = estimate_left_s(LAST, 0.475, passed_s=95)

    assert left_s is not None
    assert 90 < left_s < 105


def test_load_that_comes_no_further_is_expected_later_and_later() -> None:
    waits = [estimate_left_s(LAST, 0.05, passed_s=passed_s) or 0.0 for passed_s in (1, 10, 100)]

    assert waits == sorted(waits)
    assert waits[-1] > 500


def test_last_load_that_took_no_time_foretells_none() -> None:
    assert estimate_left_s(((1.0, 0.0),), 0.5, passed_s=3) == 0

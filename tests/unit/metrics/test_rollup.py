import pytest

from llamaherd_metrics.rollup import Bucket, Clock, Rung, Shape, draw, pick_step

RUNGS = (Rung(1, 7200), Rung(10, 172_800), Rung(60, 1_209_600), Rung(600, 7_776_000))
NOW_S = 1_800_000_000
CLOCK = Clock(stored_s=NOW_S, first_s=NOW_S - 7_776_000)
HOST = Shape("box", "host", ("cpu_pct", "load1"))


def test_bucket_keeps_count_sum_minimum_and_maximum() -> None:
    bucket = Bucket.of([1.0, 10.0])

    bucket.add([3.0, -10.0])

    assert bucket == Bucket(2, [4.0, 0.0], [1.0, -10.0], [3.0, 10.0])


def test_packed_bucket_comes_back_to_the_last_bit() -> None:
    bucket = Bucket.of([0.1, 1e300])
    bucket.add([0.2, -0.0])

    assert Bucket.unpack(bucket.count, bucket.pack()) == bucket


@pytest.mark.parametrize(
    ("span_s", "max_points", "step_s"),
    [
        (300, 600, 1),
        (900, 600, 2),
        (3600, 3600, 1),
        (3600, 600, 10),
        (6 * 3600, 600, 60),
        (86_400, 600, 180),
        (7 * 86_400, 600, 1200),
        (90 * 86_400, 600, 13_200),
    ],
    ids=["5 min", "15 min", "1 h raw", "1 h", "6 h", "1 day", "1 week", "90 days"],
)
def test_finest_step_that_fits_is_picked(span_s: int, max_points: int, step_s: int) -> None:
    rung, step = pick_step(RUNGS, CLOCK, from_s=NOW_S - span_s, to_s=NOW_S, max_points=max_points)

    assert step == step_s
    assert step % rung.step_s == 0
    assert span_s / step <= max_points


def test_rung_that_does_not_reach_back_far_enough_is_passed_over() -> None:
    three_hours_ago = NOW_S - 3 * 3600

    _, step_s = pick_step(RUNGS, CLOCK, from_s=three_hours_ago, to_s=three_hours_ago + 300, max_points=600)

    assert step_s == 10


def test_points_of_several_shapes_of_a_source_form_one_curve() -> None:
    with_gpu = Shape("box", "host", ("gpu_w", "cpu_pct"))
    rows = [
        (0.0, 1, Bucket(2, [10.0, 2.0], [4.0, 1.0], [6.0, 1.0])),
        (0.0, 2, Bucket(1, [50.0, 8.0], [50.0, 8.0], [50.0, 8.0])),
    ]

    series = {one.name: one for one in draw(rows, {1: HOST, 2: with_gpu}, step_s=10, names=None)}

    assert list(series) == ["cpu_pct", "gpu_w", "load1"]
    assert (series["cpu_pct"].at_s, series["cpu_pct"].mean) == ([0.0], [6.0])
    assert (series["cpu_pct"].minimum, series["cpu_pct"].maximum) == ([4.0], [8.0])


def test_rows_are_merged_into_wider_points() -> None:
    rows = [(float(at_s), 1, Bucket.of([float(at_s), 0.0])) for at_s in (10, 20, 30, 40)]

    (series,) = draw(rows, {1: HOST}, step_s=20, names=frozenset({"cpu_pct"}))

    assert series.at_s == [0.0, 20.0, 40.0]
    assert series.mean == [10.0, 25.0, 40.0]
    assert series.maximum == [10.0, 30.0, 40.0]


def test_raw_points_keep_their_own_time() -> None:
    (series,) = draw([(5.25, 1, Bucket.of([1.0, 2.0]))], {1: HOST}, step_s=1, names=frozenset({"load1"}))

    assert series.at_s == [5.25]

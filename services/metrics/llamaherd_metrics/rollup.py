"""Roll-ups: buckets that hold count, sum, minimum and maximum of every value, and curves read back from them. Pure.

A bucket is folded from samples one after the other, in the order of the stream, so that its sums come out the
same to the last bit however the stream was cut into batches. Rows hold plain arrays of numbers; a shape (the
names of a sample's values, in order) tells what they are.
"""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from llamaherd_shared.commands import Series

RAW_STEP_S: Final = 1
"""Resolution of samples as they came."""
AHEAD_S: Final = 60
"""A sample dated further ahead of its arrival than this comes from a clock that is wrong."""
HORIZON_STEP_S: Final = 60
"""Old rows go in strides of this, not one every second."""
FACTORS: Final = (1, 2, 3)
"""How many rows of a rung may be merged into a point before the next rung is tried: bounds the rows read."""


class Rung(msgspec.Struct, frozen=True):
    """One resolution that is kept."""

    step_s: int
    keep_s: int


class Shape(msgspec.Struct, frozen=True):
    """What the numbers of a row mean."""

    node: str
    source: str
    names: tuple[str, ...]


class Clock(msgspec.Struct, frozen=True):
    """How far the stream has come. All ages are counted from `stored_s`, so that a rebuild keeps the same rows."""

    stored_s: int = 0
    """When nats-server stored the newest message, Unix seconds."""
    first_s: int | None = None
    """The oldest sample ever counted, Unix seconds."""

    def horizon_s(self, rung: Rung) -> int:
        """What begins before this is too old for the rung."""
        return (self.stored_s - rung.keep_s) // HORIZON_STEP_S * HORIZON_STEP_S


class Bucket(msgspec.Struct):
    """Many samples of one shape as one row."""

    count: int
    sums: list[float]
    minima: list[float]
    maxima: list[float]

    @classmethod
    def of(cls, values: Sequence[float]) -> "Bucket":
        return cls(1, list(values), list(values), list(values))

    def add(self, values: Sequence[float]) -> None:
        """Count one more sample, in place: this is the hot loop of a rebuild."""
        self.count += 1
        self.sums = [total + value for total, value in zip(self.sums, values, strict=True)]
        self.minima = list(map(min, self.minima, values))
        self.maxima = list(map(max, self.maxima, values))

    def only(self, places: Sequence[int]) -> "Bucket":
        """Without the values nobody asked for."""
        return Bucket(
            self.count,
            [self.sums[place] for place in places],
            [self.minima[place] for place in places],
            [self.maxima[place] for place in places],
        )

    def pack(self) -> bytes:
        """All sums, then all minima, then all maxima, as native 64-bit floats."""
        return array("d", self.sums + self.minima + self.maxima).tobytes()

    @classmethod
    def unpack(cls, count: int, data: bytes) -> "Bucket":
        numbers = unpack_numbers(data)
        width = len(numbers) // 3
        return cls(count, numbers[:width], numbers[width : 2 * width], numbers[2 * width :])


def pack_numbers(values: Sequence[float]) -> bytes:
    return array("d", values).tobytes()


def unpack_numbers(data: bytes) -> list[float]:
    numbers = array("d")
    numbers.frombytes(data)
    return numbers.tolist()


def pick_step(rungs: Sequence[Rung], clock: Clock, *, from_s: float, to_s: float, max_points: int) -> tuple[Rung, int]:
    """The rung to read and the seconds between points: the finest that fits `max_points` and reaches back far enough.

    `rungs` are ordered from fine to coarse. When none reaches back far enough, the coarsest does its best.
    `from_s` must not lie before the first sample there is, else a coarse rung is read for want of nothing.
    """
    span_s = to_s - from_s
    for place, rung in enumerate(rungs):
        beyond_s = rungs[place + 1].step_s if place + 1 < len(rungs) else None
        if from_s < clock.horizon_s(rung) and beyond_s is not None:
            continue
        for factor in FACTORS:
            step_s = rung.step_s * factor
            if (beyond_s is None or step_s < beyond_s) and span_s / step_s <= max_points:
                return rung, step_s
    coarsest = rungs[-1].step_s
    return rungs[-1], coarsest * max(1, -int(-span_s // (coarsest * max_points)))


class _Curve:
    """Points of one shape in order of time, a row of values each: turned into columns only at the end."""

    __slots__ = ("at_s", "counts", "maxima", "minima", "sums")

    def __init__(self) -> None:
        self.at_s: list[float] = []
        self.counts: list[int] = []
        self.sums: list[list[float]] = []
        self.minima: list[list[float]] = []
        self.maxima: list[list[float]] = []

    def add(self, at_s: float, bucket: Bucket) -> None:
        if self.at_s and self.at_s[-1] == at_s:
            self.counts[-1] += bucket.count
            self.sums[-1] = [total + more for total, more in zip(self.sums[-1], bucket.sums, strict=True)]
            self.minima[-1] = list(map(min, self.minima[-1], bucket.minima))
            self.maxima[-1] = list(map(max, self.maxima[-1], bucket.maxima))
            return
        self.at_s.append(at_s)
        self.counts.append(bucket.count)
        self.sums.append(bucket.sums)
        self.minima.append(bucket.minima)
        self.maxima.append(bucket.maxima)

    def column(self, place: int) -> "_Points":
        return [
            (at_s, count, sums[place], minima[place], maxima[place])
            for at_s, count, sums, minima, maxima in zip(
                self.at_s, self.counts, self.sums, self.minima, self.maxima, strict=True
            )
        ]


_Points = list[tuple[float, int, float, float, float]]
"""Time, count, sum, minimum, maximum."""


def draw(
    rows: Iterable[tuple[float, int, Bucket]],
    shapes: Mapping[int, Shape],
    *,
    step_s: int,
    names: frozenset[str] | None,
) -> list[Series]:
    """Curves from rows (Unix seconds, shape, bucket) in order of time, one point per `step_s`.

    `names`: only these; `None`: all. Values are rounded to three decimals: that halves the answer, and no unit
    here is that coarse.
    """
    wanted = {number: _places(shape, names) for number, shape in shapes.items()}
    curves: dict[int, _Curve] = {}
    for row_s, shape, bucket in rows:
        if shape not in curves:
            curves[shape] = _Curve()
        some = bucket if names is None else bucket.only(wanted[shape])
        curves[shape].add(row_s if step_s == RAW_STEP_S else row_s // step_s * step_s, some)
    drawn: dict[tuple[str, str, str], _Points] = {}
    for number, curve in curves.items():
        for column, place in enumerate(wanted[number]):
            key = (shapes[number].node, shapes[number].source, shapes[number].names[place])
            points = curve.column(column)
            drawn[key] = _merge(drawn[key], points) if key in drawn else points
    return [_series(*key, points) for key, points in sorted(drawn.items())]


def _places(shape: Shape, names: frozenset[str] | None) -> list[int]:
    return [place for place, name in enumerate(shape.names) if names is None or name in names]


def _merge(some: _Points, others: _Points) -> _Points:
    """One curve from two shapes of the same source: its names changed on the way."""
    merged: _Points = []
    for point in sorted(some + others):
        at_s, count, total, minimum, maximum = point
        if merged and merged[-1][0] == at_s:
            _, known_count, known_total, known_minimum, known_maximum = merged[-1]
            merged[-1] = (
                at_s,
                known_count + count,
                known_total + total,
                min(known_minimum, minimum),
                max(known_maximum, maximum),
            )
        else:
            merged.append(point)
    return merged


def _series(node: str, source: str, name: str, points: _Points) -> Series:
    return Series(
        node=node,
        source=source,
        name=name,
        at_s=[at_s for at_s, *_ in points],
        mean=[round(total / count, 3) for _, count, total, _, _ in points],
        minimum=[round(minimum, 3) for _, _, _, minimum, _ in points],
        maximum=[round(maximum, 3) for _, _, _, _, maximum in points],
    )

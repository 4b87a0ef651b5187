"""Whether a load goes on, and how long it will take, as far as the load before it tells. Pure."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import msgspec

Mark = tuple[float, float]
"""How far a load was (0 to 1), and when: seconds since the spawn."""

_ENOUGH_BYTES: Final = 2**20
"""Less than this is no progress: our own probes make a process read, and allocate, a little."""
_DOUBT: Final = 0.05
"""Share of the last load that has to pass before the pace of this one counts much."""


class Signs(msgspec.Struct, frozen=True, kw_only=True):
    """Of life, while it loads; each has grown since the spawn, if anything happened."""

    lines: int = 0
    """That it has written."""
    resident_bytes: int = 0
    read_bytes: int = 0


class Headway(msgspec.Struct, frozen=True):
    signs: Signs
    """When it last went on."""
    still_s: float = 0.0
    """For how long nothing has happened since."""


def look_again(before: Headway, signs: Signs, *, after_s: float) -> Headway:
    """Whether it has gone on since the last look. Memory that was given back and grows again counts too."""
    old = before.signs
    if (
        signs.lines > old.lines
        or signs.resident_bytes >= old.resident_bytes + _ENOUGH_BYTES
        or signs.read_bytes >= old.read_bytes + _ENOUGH_BYTES
    ):
        return Headway(signs)
    lowest = msgspec.structs.replace(old, resident_bytes=min(old.resident_bytes, signs.resident_bytes))
    return Headway(lowest, before.still_s + after_s)


def estimate_left_s(last: Sequence[Mark], ratio: float, *, passed_s: float) -> float | None:
    """Seconds until it is ready, if this load goes on at its pace like the last one; `None` without a last one.

    `last` ends with the mark of its end. A load that reads from the disk what the last one found in memory is slower
    from the first stage on: what is left is stretched by how much longer it took to come this far.
    """
    if not last:
        return None
    took_s = last[-1][1]
    came_s = _time_of(last, ratio)
    doubt_s = max(_DOUBT * took_s, 0.1)
    return (took_s - came_s) * (passed_s + doubt_s) / (came_s + doubt_s)


def _time_of(marks: Sequence[Mark], ratio: float) -> float:
    """When a load was this far; between two marks it went on evenly."""
    for (low, began_s), (high, ended_s) in pairwise([(0.0, 0.0), *marks]):
        if low <= ratio < high:
            return began_s + (ended_s - began_s) * (ratio - low) / (high - low)
    return marks[-1][1]

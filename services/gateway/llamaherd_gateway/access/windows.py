"""Sums over the last minute: what still counts against a limit."""

from collections import deque
from collections.abc import Iterable, Iterator
from heapq import merge
from typing import Final

WINDOW_S: Final = 60.0
STEP_S: Final = 0.05
"""What comes closer together is kept as one, so that a window has at most 1200 entries."""
_ROUNDING_S: Final = 1e-6


class Window:
    """Amounts with the time until which each counts. Times only grow."""

    __slots__ = ("_entries", "_total")

    def __init__(self) -> None:
        self._entries: deque[list[float]] = deque()
        """[first time in the entry, time until which it counts, amount]"""
        self._total = 0.0

    def add(self, amount: float, now_s: float, limit: float = 0) -> None:
        """Count an amount for a minute; what goes beyond `limit` longer, until it is paid off at the limit's pace."""
        if amount <= 0:
            return
        self.expire(now_s)
        self._total += amount
        until = now_s + WINDOW_S
        if limit and self._total > limit:
            until += WINDOW_S * (self._total - limit) / limit
        if self._entries:
            last = self._entries[-1]
            until = max(until, last[1])
            if until - last[0] < STEP_S:
                last[1] = until
                last[2] += amount
                return
        self._entries.append([until, until, amount])

    def expire(self, now_s: float) -> None:
        entries = self._entries
        while entries and entries[0][1] <= now_s + _ROUNDING_S:
            self._total -= entries.popleft()[2]
        if not entries:
            self._total = 0.0

    def total(self, now_s: float) -> float:
        self.expire(now_s)
        return self._total

    def endings(self) -> Iterator[tuple[float, float]]:
        """(when, how much) will no longer count, in order."""
        return ((until, amount) for _, until, amount in self._entries)


def free_at(windows: Iterable[Window], need: float) -> float | None:
    """When `need` will no longer count in all windows together; `None`: never."""
    for until, amount in merge(*(window.endings() for window in windows)):
        need -= amount
        if need <= 0:
            return until
    return None

"""Whose supervisors have been heard of lately, by their presence. Pure: time is given, of one clock.

A host that has vanished says nothing any more, and what was last said about its instances stays as it is: ready.
"""

from collections.abc import Iterable


class Attendance:
    """What one gateway has heard."""

    def __init__(self, now_s: float, *, silence_s: float) -> None:
        """Who is not heard for `silence_s` is gone, or his host is."""
        self._silence_s = silence_s
        self._listening_s = now_s
        self._heard_s: dict[str, float] = {}

    def hear(self, node: str, now_s: float) -> None:
        """A beat of this node's supervisor."""
        self._heard_s[node] = now_s

    def deaf(self, now_s: float) -> None:
        """The bus is away: nobody can be heard, which says nothing about anybody."""
        self._listening_s = now_s

    def heard_since(self, node: str, at_s: float) -> bool:
        return self._heard_s.get(node, float("-inf")) >= at_s

    def silent(self, nodes: Iterable[str], now_s: float) -> frozenset[str]:
        """Those that have not been heard for too long."""
        return frozenset(
            node for node in nodes if now_s - max(self._heard_s.get(node, 0.0), self._listening_s) > self._silence_s
        )

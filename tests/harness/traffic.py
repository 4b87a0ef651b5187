"""Several gateways' limits on a made-up clock: requests, gossip with its delay, and what came of them."""

import heapq
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from llamaherd_gateway.access.keys import Key
from llamaherd_gateway.access.limits import GOSSIP_S, SHARED_S, Limiter
from llamaherd_shared.events.access import KeyLimits
from llamaherd_shared.events.usage import decode_usage, encode_usage

PAUSE_S = 0.01


class Traffic:
    """Gateways that share one key. Time starts at 0."""

    def __init__(self, gateways: int, *, latency_s: float = 0.002, hold_s: float = SHARED_S, **limits: int) -> None:
        self.key = Key(key="k7q2mzxa", limits=KeyLimits(**limits))
        self.limiters: dict[int, Limiter] = {}
        self.admitted: list[float] = []
        """When."""
        self.spent: list[tuple[float, int]] = []
        """(when, tokens)"""
        self.refused = self.in_flight = self.most_in_flight = 0
        self.longest_wait_s = 0.0
        self.latency_s, self.hold_s = latency_s, hold_s
        self.now_s = 0.0
        self._agenda: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = itertools.count()
        self._busy_until_s = 0.0
        for place in range(gateways):
            self.start(place, at_s=0.0)

    def start(self, place: int, *, at_s: float) -> None:
        """A gateway begins to run; again: as a new process."""
        self._at(at_s, self._start, place)

    def stop(self, place: int, *, at_s: float) -> None:
        """A gateway dies; what it has in flight dies with it."""
        self._at(at_s, lambda: self.limiters.pop(place))

    def ask(self, at_s: float, place: int, *, lasts_s: float = 1.0, tokens: int = 10, then: Sequence[int] = ()) -> None:
        """`then`: gateways that the same client asks next, each `PAUSE_S` after the answer before."""
        self._busy_until_s = max(self._busy_until_s, at_s + self.hold_s)
        self._at(at_s, self._ask, place, at_s, lasts_s, tokens, then)

    def run(self, *, until_s: float) -> "Traffic":
        while self._agenda and self._agenda[0][0] <= until_s:
            self.now_s, _, action, arguments = heapq.heappop(self._agenda)
            action(*arguments)
        return self

    def _at(self, at_s: float, action: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._agenda, (at_s, next(self._numbers), action, arguments))

    def _start(self, place: int) -> None:
        limiter = self.limiters[place] = Limiter(f"g{place}-{self.now_s}", self.now_s)
        self._gossip(place, limiter)

    def _gossip(self, place: int, limiter: Limiter) -> None:
        if self.limiters.get(place) is not limiter:
            return
        usage = limiter.gossip(self.now_s)
        if usage is not None:
            data = encode_usage(usage)
            for other in list(self.limiters.values()):
                self._at(self.now_s + self.latency_s, lambda other=other: other.hear(decode_usage(data), self.now_s))
        # Out of step with each other; nothing changes while nobody asks, so that can be gone through in long steps.
        quiet = self.now_s > self._busy_until_s and not any(when < self.now_s + 3 for when in self._asks())
        self._at(self.now_s + (20 if quiet else 1 + place / 50) * GOSSIP_S, self._gossip, place, limiter)

    def _asks(self) -> Iterable[float]:
        return (at_s for at_s, _, action, _ in self._agenda if action == self._ask)

    def _ask(self, place: int, first_s: float, lasts_s: float, tokens: int, then: Sequence[int]) -> None:
        limiter = self.limiters[place]
        refusal = limiter.admit(self.key, self.now_s)
        if refusal is None:
            self.admitted.append(self.now_s)
            self.longest_wait_s = max(self.longest_wait_s, self.now_s - first_s)
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            self._at(self.now_s + lasts_s, self._finish, limiter, tokens)
            if then:
                self.ask(self.now_s + lasts_s + PAUSE_S, then[0], lasts_s=lasts_s, tokens=tokens, then=then[1:])
        elif self.now_s - first_s < min(refusal.hold_s, self.hold_s):
            self._at(self.now_s + GOSSIP_S, self._ask, place, first_s, lasts_s, tokens, then)
        else:
            self.refused += 1

    def _finish(self, limiter: Limiter, tokens: int) -> None:
        self.in_flight -= 1
        if limiter in self.limiters.values():
            limiter.finish(self.key, tokens, self.now_s)
            self.spent.append((self.now_s, tokens))


def most_in_a_minute(amounts: Iterable[tuple[float, int]]) -> int:
    """The largest sum of any 60 s."""
    most = total = 0
    window: list[tuple[float, int]] = []
    for at_s, amount in sorted(amounts):
        window.append((at_s, amount))
        total += amount
        while window[0][0] <= at_s - 59.999:
            total -= window.pop(0)[1]
        most = max(most, total)
    return most

"""What is known of one API key's use, here and on other gateways, and how it stands against each limit."""

from collections.abc import Collection
from typing import Final

import msgspec

from llamaherd_gateway.access.windows import Window
from llamaherd_shared.events.access import KeyLimits
from llamaherd_shared.events.usage import KeyUsage

EXPECTED_TOKENS: Final = 256
"""What a request is taken to use until one of its key has ended."""
_LEARN_FROM: Final = 8
"""The expectation follows what about so many requests used."""


class Peer:
    """One key on one other gateway, as it was told."""

    __slots__ = ("asked_s", "requests", "said", "tokens")

    def __init__(self, said: KeyUsage, now_s: float) -> None:
        self.said = said
        self.asked_s = now_s
        """When it last told that it is asked for this key."""
        self.requests, self.tokens = Window(), Window()


class Counted:
    """One key: what we have counted, what we have told, and what the others told."""

    def __init__(self, key: str) -> None:
        self.limits = KeyLimits()
        self.asked = self.requests = self.tokens = self.in_flight = 0
        self.recent_requests, self.recent_tokens = Window(), Window()
        self.expected_tokens = float(EXPECTED_TOKENS)
        """Of one request: what the last ones used."""
        self.told = KeyUsage(key, 0, 0, 0, 0, 0, 0, 0)
        self.asked_s = float("-inf")
        self.announced_s: float | None = None
        """When we told that we are asked for this key; `None`: not yet, or not any more."""
        self.peers: dict[str, Peer] = {}
        self.reserved: dict[str, list[tuple[int, float]]] = {}
        """By limit: (tenth of a second, the most that others could have taken untold), the last ones."""

    @property
    def held_tokens(self) -> int:
        return int(self.in_flight * self.expected_tokens)

    def learn(self, tokens: int | None) -> int:
        """One request has used so many; `None`: as many as expected. Returns how many."""
        used = int(self.expected_tokens) if tokens is None else tokens
        first = self.tokens == 0
        self.tokens += used
        if tokens:
            self.expected_tokens += (tokens - self.expected_tokens) / (1 if first else _LEARN_FROM)
        return used


class Meter(msgspec.Struct, frozen=True):
    """One limit of one key at one moment."""

    name: str
    limit: int
    cost: float
    """Of one more request."""
    used: float
    """Here, untold things included."""
    untold: float
    others: float
    """Used on other gateways, as far as they told."""
    passing: float = 0.0
    """Of `others`: what ends with requests in flight there, perhaps a moment ago."""
    windows: tuple[Window, ...] = ()
    """Where it is counted; empty: requests in flight."""

    @property
    def room(self) -> float:
        """What is left as far as everybody knows."""
        return max(0.0, self.limit - self.others - (self.used - self.untold))


def meters_of(counted: Counted, living: Collection[str], now_s: float) -> list[Meter]:
    """Its limits, those there are. What is in flight on gateways that are not `living` does not count."""
    limits, told = counted.limits, counted.told
    peers = counted.peers.values()
    in_flight = [peer.said for name, peer in counted.peers.items() if name in living]
    meters = []
    if limits.requests_per_minute:
        meters.append(
            Meter(
                name="requests a minute",
                limit=limits.requests_per_minute,
                cost=1,
                used=counted.recent_requests.total(now_s),
                untold=counted.requests - told.requests,
                others=sum(peer.requests.total(now_s) for peer in peers),
                windows=(counted.recent_requests, *(peer.requests for peer in peers)),
            )
        )
    if limits.tokens_per_minute:
        held, held_there = counted.held_tokens, sum(said.held_tokens for said in in_flight)
        meters.append(
            Meter(
                name="tokens a minute",
                limit=limits.tokens_per_minute,
                # A request that is larger than the limit goes through when nothing else does.
                cost=min(counted.expected_tokens, limits.tokens_per_minute),
                used=counted.recent_tokens.total(now_s) + held,
                untold=max(0, counted.tokens + held - told.tokens - told.held_tokens),
                others=sum(peer.tokens.total(now_s) for peer in peers) + held_there,
                passing=held_there,
                windows=(counted.recent_tokens, *(peer.tokens for peer in peers)),
            )
        )
    if limits.concurrency:
        meters.append(
            Meter(
                name="requests at once",
                limit=limits.concurrency,
                cost=1,
                used=counted.in_flight,
                untold=max(0, counted.in_flight - told.in_flight),
                others=sum(said.in_flight for said in in_flight),
                passing=sum(said.in_flight for said in in_flight),
            )
        )
    return meters

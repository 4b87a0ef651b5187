"""The memory of a node as the supervisor books it: what is promised, who waits, and what is decided. Pure.

The one who books asks `decide` whenever something has changed, and does what it says. A promise is made before a
process is spawned and ends when the process is gone and no other is to follow; so what was decided stays true.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from llamaherd_supervisor.budget import Bytes, Hold, held, subtract
from llamaherd_supervisor.estimate import Estimate
from llamaherd_supervisor.eviction import Decision, Evict, Grant, Key, Refuse, Resident, Rules, Wish, decide

_UNKNOWN: Final = Estimate(parts=())


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """What is seen of an instance that has a process, or memory promised."""

    ready: bool = False
    leaving: bool = False
    busy: bool = False
    uses: Bytes = {}
    """Measured; empty: not yet."""
    pinned: bool = False
    spare: bool = False
    priority: int = 0
    group: str = ""
    ready_ns: int = 0
    used_ns: int = 0


class Ledger:
    """One node's. Use from one task."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self._wishes: dict[Key, Wish] = {}
        self._promised: dict[Key, Estimate] = {}
        self._room_for: dict[Key, Key] = {}
        """Who was asked to go -> the load that waits for that."""
        self._freed_ns: int | None = None

    @property
    def waiting(self) -> Mapping[Key, Wish]:
        return self._wishes

    def wish(self, wish: Wish) -> None:
        """Somebody wants to load it. Who asks again keeps his turn."""
        if wish.key not in self._promised:
            known = self._wishes.get(wish.key)
            asked_ns = wish.asked_ns if known is None else min(known.asked_ns, wish.asked_ns)
            self._wishes[wish.key] = msgspec.structs.replace(wish, asked_ns=asked_ns)

    def is_promised(self, key: Key) -> bool:
        return key in self._promised

    def estimate(self, key: Key) -> Estimate:
        """What was promised; nothing is known of a process that ran before we did."""
        return self._promised.get(key, _UNKNOWN)

    def promise(self, key: Key, estimate: Estimate) -> None:
        """It has this memory, whatever there is: its process runs already. What was measured takes the place of what
        was estimated, also for its restart after a crash."""
        self._promised[key] = estimate

    def withdraw(self, key: Key) -> None:
        """Nobody wants to load it any more."""
        self._wishes.pop(key, None)

    def release(self, key: Key, *, now_ns: int) -> bool:
        """It is not loaded, and will not be without another wish. Whether that is news."""
        waited = self._wishes.pop(key, None) is not None
        promised = self._promised.pop(key, None) is not None
        self._room_for.pop(key, None)
        if promised:
            self._freed_ns = now_ns
        return waited or promised

    def residents(self, standings: Mapping[Key, Standing]) -> list[Resident]:
        """All that count, those that are promised and not seen yet among them."""
        return [
            _resident(key, standings.get(key, Standing()), self.estimate(key), leaves_for=self._leaves_for(key))
            for key in {**standings, **self._promised}
        ]

    def _leaves_for(self, key: Key) -> Key | None:
        wish = self._room_for.get(key)
        return wish if wish in self._wishes else None

    def decide(self, standings: Mapping[Key, Standing], limits: Bytes, *, now_ns: int) -> dict[Key, Decision]:
        """What becomes of all that wait. What is granted is promised, and what is refused does not wait any more.

        Unloading, and telling, is for the caller to do.
        """
        residents = self.residents(standings)
        decisions = decide(
            self._wishes.values(), residents, limits, rules=self.rules, now_ns=now_ns, freed_ns=self._freed_ns
        )
        for key, decision in decisions.items():
            if isinstance(decision, Grant):
                self._promised[key] = self._wishes.pop(key).estimate
            elif isinstance(decision, Refuse):
                self.withdraw(key)
            elif isinstance(decision, Evict):
                self._room_for |= dict.fromkeys(decision.victims, key)
        return decisions

    def preview(
        self, wish: Wish, standings: Mapping[Key, Standing], limits: Bytes, *, now_ns: int
    ) -> tuple[Decision, int, float]:
        """What would become of this load behind those that wait: (the decision, bytes that others would give up for it,
        the share of the scarcest device that would be free then). Nothing is booked."""
        residents = [each for each in self.residents(standings) if each.key != wish.key]
        others = [each for each in self._wishes.values() if each.key != wish.key]
        decision = decide([*others, wish], residents, limits, rules=self.rules, now_ns=now_ns)[wish.key]
        victims = decision.victims if isinstance(decision, Evict) else ()
        gone = [each.holds for each in residents if each.key in victims]
        stay = [each.holds for each in residents if each.key not in victims]
        free = subtract(limits, wish.estimate.needs, *stay)
        ratios = [free[device] / limit for device, limit in limits.items() if limit and wish.estimate.needs.get(device)]
        return decision, sum(sum(each.values()) for each in gone), max(0.0, min(ratios, default=0.0))

    def refusal(self, wish: Wish, standings: Mapping[Key, Standing], limits: Bytes, *, now_ns: int) -> Refuse | None:
        """Why this load would be refused, if nobody else waited; `None`: it would not. Nothing is booked."""
        residents = [each for each in self.residents(standings) if each.key != wish.key]
        decision = decide([wish], residents, limits, rules=self.rules, now_ns=now_ns, freed_ns=self._freed_ns)[wish.key]
        return decision if isinstance(decision, Refuse) else None


def _resident(key: Key, standing: Standing, estimate: Estimate, *, leaves_for: Key | None) -> Resident:
    return Resident(
        key=key,
        holds=held(Hold(needs=estimate.needs, uses=standing.uses, ready=standing.ready or standing.leaving)),
        ready=standing.ready,
        leaving=standing.leaving,
        leaves_for=leaves_for if standing.leaving else None,
        busy=standing.busy,
        pinned=standing.pinned,
        spare=standing.spare,
        priority=standing.priority,
        group=standing.group,
        ready_ns=standing.ready_ns,
        used_ns=standing.used_ns,
    )

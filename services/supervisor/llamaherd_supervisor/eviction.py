"""Who may have a node's memory: loads that fit go on, others wait for what is unloaded for them, or are refused. Pure.

The policy: what works, loads, is pinned or has just come is never unloaded; of the rest first what has the lowest
priority, then what was used least lately, and no more than it takes. Loads are served in turn; one that has waited for
`Rules.patience_s` comes before those of higher priority, and from then on what is in its way gets no new work.
Why no two models push each other out in a loop: each stays for `Rules.min_residence_s` once it is ready.
"""

import enum
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from llamaherd_supervisor.budget import Bytes, add, lacking, render_amount, render_device, subtract
from llamaherd_supervisor.estimate import Estimate, render_need

Key = tuple[str, int]
"""(model, index)"""

CAUSE: Final = "evicted for "
"""Before the model's name, in the facts about an instance that makes room for it."""


class Group(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Models that share rules about what may be loaded beside them. Pinned models stay, whatever these say."""

    swap: bool = False
    """Only one of the group is loaded at a time."""
    exclusive: bool = False
    """While one of the group is loaded, nothing outside it is."""


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """How patient the policy is. Defaults and their reasons are in `settings.py`."""

    min_residence_s: float = 5.0
    patience_s: float = 30.0
    release_s: float = 10.0
    groups: Mapping[str, Group] = {}


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """A load that waits for memory."""

    key: Key
    estimate: Estimate
    asked_ns: int
    priority: int = 0
    group: str = ""
    may_evict: bool = True
    """Whether others are unloaded for it: not for what nobody has asked for, after a restart of the supervisor."""

    @property
    def model(self) -> str:
        return self.key[0]


class Resident(msgspec.Struct, frozen=True, kw_only=True):
    """An instance that has memory, or to which it is promised."""

    key: Key
    holds: Bytes
    ready: bool = False
    leaving: bool = False
    """It was asked to go, and its memory comes back."""
    leaves_for: Key | None = None
    """The load that waits for that; `None`: it goes for another reason, or for a load that waits no more."""
    busy: bool = False
    pinned: bool = False
    spare: bool = False
    """More than its model is to have at least: it goes before what would leave a model without any."""
    priority: int = 0
    group: str = ""
    ready_ns: int = 0
    """Since when it is ready."""
    used_ns: int = 0
    """When it was last seen at work."""

    @property
    def model(self) -> str:
        return self.key[0]


class Obstacle(enum.StrEnum):
    """Why an instance is not unloaded now."""

    LOADING = "which is loading"
    YOUNG = "which has just been loaded"
    BUSY = "which is at work"


class Grant(msgspec.Struct, frozen=True):
    """Load it now: the memory is its."""


class Evict(msgspec.Struct, frozen=True):
    """Unload these, and look again."""

    victims: tuple[Key, ...]


class Await(msgspec.Struct, frozen=True):
    """Look again later."""

    why: str
    """What it waits for, as the end of a sentence."""


class Refuse(msgspec.Struct, frozen=True):
    """It does not fit, and nothing that may be done changes that."""

    why: str


Decision = Grant | Evict | Await | Refuse


def decide(
    wishes: Iterable[Wish],
    residents: Sequence[Resident],
    limits: Bytes,
    *,
    rules: Rules,
    now_ns: int,
    freed_ns: int | None = None,
) -> dict[Key, Decision]:
    """What becomes of each load that waits, in the order in which they are served.

    `limits`: what all instances together may have now on each device. `freed_ns`: when a process last ended; a
    driver may give its memory back a while later, so nothing is refused until `Rules.release_s` after that.
    """
    queue = _Queue(residents, limits, rules, now_ns)
    decisions: dict[Key, Decision] = {}
    for wish in sorted(wishes, key=lambda each: _rank(each, rules, now_ns)):
        decision = queue.decide(wish)
        if isinstance(decision, Refuse) and freed_ns is not None and now_ns - freed_ns < rules.release_s * 1e9:
            decision = Await("memory that was just freed to come back")
        decisions[wish.key] = decision
    return decisions


def _rank(wish: Wish, rules: Rules, now_ns: int) -> tuple[bool, int, int, Key]:
    overdue = _is_overdue(wish, rules, now_ns)
    return not overdue, 0 if overdue else -wish.priority, wish.asked_ns, wish.key


def _is_overdue(wish: Wish, rules: Rules, now_ns: int) -> bool:
    return now_ns - wish.asked_ns >= rules.patience_s * 1e9


def clash(one: Resident | Wish, other: Resident | Wish, groups: Mapping[str, Group]) -> bool:
    """Whether their groups keep the two from being loaded together."""
    if not groups:
        return False
    if any(isinstance(each, Resident) and each.pinned for each in (one, other)):
        return False
    mine, theirs = groups.get(one.group, _FREE), groups.get(other.group, _FREE)
    if one.group == other.group:
        return mine.swap and one.model != other.model
    return mine.exclusive or theirs.exclusive


_FREE: Final = Group()


class _Queue:
    """Two worlds while the queue is worked through: memory as it is now, and as it will be once all that was decided
    is done. A load may only have what is free in both: so none takes what an earlier one waits for. Nor may it have
    that in exchange for what its own victims will give back: the earlier one would wait for them too, and in the end
    for ever."""

    def __init__(self, residents: Sequence[Resident], limits: Bytes, rules: Rules, now_ns: int) -> None:
        self._limits, self._rules, self._now_ns = limits, rules, now_ns
        self._present = list(residents)
        self._staying: list[Resident] = []
        self._before: list[Wish] = []
        """Those that will be loaded before."""
        # Sums, as a hundred may wait for a node that holds a hundred.
        self._taken: Bytes = add(*(each.holds for each in residents))
        """Now, with what was granted."""
        self._kept: Bytes = {}
        """By those that stay."""
        self._awaited: Bytes = {}
        """By those that will be loaded before."""
        self._keep(resident for resident in residents if not resident.leaving)

    def decide(self, wish: Wish) -> Decision:
        first = next((each for each in self._before if clash(wish, each, self._rules.groups)), None)
        if first is not None:
            return Await(f"{first.model}, which was asked for first and may not be loaded beside it")
        clashing = [resident for resident in self._staying if clash(wish, resident, self._rules.groups)]
        others = [resident for resident in self._staying if resident not in clashing]
        kept = subtract(self._kept, *(each.holds for each in clashing))
        chosen = self._choose(wish, others, lacking(wish.estimate.needs, self._free_later(kept)))
        if chosen is None or (clashing and not wish.may_evict):
            return self._turn_away(wish)
        victims = [*clashing, *chosen]
        decision = self._evict(wish, victims) if victims else self._load(wish)
        if victims:
            self._keep(resident for resident in self._staying if resident not in victims)
        self._before.append(wish)
        self._awaited = add(self._awaited, wish.estimate.needs)
        if isinstance(decision, Grant):
            self._taken = add(self._taken, wish.estimate.needs)
        return decision

    def _keep(self, residents: Iterable[Resident]) -> None:
        self._staying = list(residents)
        self._kept = add(*(each.holds for each in self._staying))

    def _free_later(self, *kept: Bytes) -> dict[str, int]:
        return subtract(self._limits, *kept, self._awaited)

    def _choose(self, wish: Wish, others: Sequence[Resident], missing: Bytes) -> list[Resident] | None:
        """The smallest set whose memory is enough; `None` when all is not. First it is looked for among what is idle,
        of which some may have to stay a moment longer."""
        if not missing:
            return []
        if not wish.may_evict:
            return None
        # Two instances of one model make no room for each other: they would never both be there.
        open_to_it = [resident for resident in others if not resident.pinned and resident.model != wish.model]
        idle = [resident for resident in open_to_it if resident.ready and not resident.busy]
        return choose_victims(idle, missing) or choose_victims(open_to_it, missing)

    def _load(self, wish: Wish) -> Decision:
        """Nobody has to be unloaded for it; but those that an earlier one waits for may still be here."""
        needs = wish.estimate.needs
        clashing = [each for each in self._present if clash(wish, each, self._rules.groups)]
        if clashing or lacking(needs, subtract(self._limits, self._taken)):
            return _until_gone(clashing or [each for each in self._present if each not in self._staying])
        before = {each.key for each in self._before}
        in_exchange = [each for each in self._present if each.leaves_for is not None and each.leaves_for not in before]
        if lacking(needs, self._free_later(self._kept, *(each.holds for each in in_exchange))):
            return _until_gone(in_exchange)
        return Grant()

    def _evict(self, wish: Wish, victims: Sequence[Resident]) -> Decision:
        obstacles = [(each, obstacle) for each in victims if (obstacle := self._obstacle(each)) is not None]
        # What works for ever gets no new work then; what it works on it finishes.
        overdue = _is_overdue(wish, self._rules, self._now_ns)
        if overdue and all(obstacle is Obstacle.BUSY for _, obstacle in obstacles):
            obstacles = []
        if obstacles:
            return Await(", ".join(f"{each.model}, {obstacle}" for each, obstacle in obstacles))
        return Evict(tuple(each.key for each in victims))

    def _obstacle(self, resident: Resident) -> Obstacle | None:
        if not resident.ready:
            return Obstacle.LOADING
        if self._now_ns - resident.ready_ns < self._rules.min_residence_s * 1e9:
            return Obstacle.YOUNG
        return Obstacle.BUSY if resident.busy else None

    def _turn_away(self, wish: Wish) -> Decision:
        """Refused, unless it has room once those before it have been loaded and may be unloaded again."""
        keeps = [each for each in self._staying if each.pinned or not wish.may_evict or each.model == wish.model]
        stuck = [(each.model, each.holds) for each in keeps]
        if not wish.may_evict:
            stuck += [(each.model, each.estimate.needs) for each in self._before]
        free = subtract(self._limits, *(holds for _, holds in stuck))
        if self._before and wish.may_evict and not lacking(wish.estimate.needs, free):
            return Await(f"{self._before[0].model}, which was asked for first")
        return Refuse(self._explain(wish, stuck, free))

    def _explain(self, wish: Wish, stuck: Sequence[tuple[str, Bytes]], free: Bytes) -> str:
        """The arithmetic: what it needs, what is free, who has the rest."""
        devices = lacking(wish.estimate.needs, free) or wish.estimate.needs
        kept = [f"{model} has {_render(holds, devices)}" for model, holds in stuck if _render(holds, devices)]
        limits = [(self._limits.get(each, 0), each) for each in devices]
        of = " and ".join(f"{render_amount(limit, each)} of {render_device(each)}" for limit, each in limits)
        text = f"{render_need(wish.model, wish.estimate, free)} of the {of} that models may have"
        return text + (f" ({', '.join(kept)}, and may not be unloaded for it)" if kept else "")


def _until_gone(residents: Iterable[Resident]) -> Await:
    return Await(f"{', '.join(each.model for each in residents)} to be gone")


def _render(holds: Bytes, devices: Iterable[str]) -> str:
    return " and ".join(render_amount(holds[device], device) for device in devices if holds.get(device))


def choose_victims(candidates: Iterable[Resident], missing: Bytes) -> list[Resident] | None:
    """The first of them, by priority and last use, that together have what is missing, without those that the others
    make superfluous; `None` when all of them have not."""
    chosen: list[Resident] = []
    for each in sorted(candidates, key=_worth):
        if not lacking(missing, add(*(other.holds for other in chosen))):
            break
        if any(each.holds.get(device) for device in missing):
            chosen.append(each)
    if lacking(missing, add(*(each.holds for each in chosen))):
        return None
    for each in sorted(chosen, key=_worth, reverse=True):
        without = [other for other in chosen if other is not each]
        if not lacking(missing, add(*(other.holds for other in without))):
            chosen = without
    return chosen


def _worth(resident: Resident) -> tuple[int, bool, int, Key]:
    return resident.priority, not resident.spare, resident.used_ns, resident.key

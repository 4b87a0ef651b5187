"""How long a model stays loaded after its last request, where clients (`keep_alive`) or its entry (`ttl_s`) say so.

The time runs from the end of the last request; every request that says something about it replaces what was said.
While no client has said anything its entry counts, and without one it stays. What is pinned stays in any case. Pure:
time is given.

Gateways share this: each tells the others which of the models somebody spoke about it uses, and since when it does
not (`ModelUse`). The one that was told last how long a model stays is the one that unloads it, once no other gateway
uses it either; what only its entry speaks about, any of them unloads. What began elsewhere before the time was over
has been told here `SETTLE_S` after it.
"""

from collections.abc import Callable, Sequence, Set
from typing import Final

import msgspec

from llamaherd_shared.events.usage import ModelUse
from llamaherd_shared.model_spec import ModelSpec

BEAT_S: Final = 2.0
"""So often everything is told again."""
FORGET_S: Final = 6.0
"""A gateway that was silent for so long is gone, and its requests with it."""
SETTLE_S: Final = 0.5
"""After this, everybody has heard what was told, and has said what he had to say to it."""
_NEVER: Final = float("-inf")


class _Here(msgspec.Struct):
    """One model on this gateway."""

    in_flight: int = 0
    ended_s: float = _NEVER
    """When its last request ended."""


class _Said(msgspec.Struct, frozen=True):
    keep_s: float
    """Negative: for ever."""
    said_s: float


class _There(msgspec.Struct, frozen=True):
    """One model on another gateway."""

    in_flight: int
    ended_s: float
    said: _Said | None


class Residency:
    """What this gateway knows. Seconds are of one clock that never goes back."""

    def __init__(self, spec_of: Callable[[str], ModelSpec] = lambda _: ModelSpec()) -> None:
        self._spec_of = spec_of
        self._ready_since: dict[str, float | None] = {}
        """Models that take requests; `None`: since a moment ago."""
        self._here: dict[str, _Here] = {}
        self._said: dict[str, _Said] = {}
        """What was last said to this gateway, unless another one was told something since."""
        self._peers: dict[str, tuple[float, dict[str, _There]]] = {}
        """By gateway: when it was last heard, and what it told."""
        self._told: list[object] = []
        self._told_s = _NEVER

    # Requests.

    def begin(self, model: str) -> None:
        """A request uses it."""
        here = self._here.get(model)
        if here is None:
            here = self._here[model] = _Here()
        here.in_flight += 1

    def end(self, model: str, keep_alive_s: float | None, now_s: float) -> None:
        """The request is over. `keep_alive_s`: negative for ever, 0 at once, `None` as before."""
        here = self._here[model]
        here.in_flight -= 1
        here.ended_s = now_s
        if keep_alive_s is not None:
            self.say(model, keep_alive_s, now_s)

    def say(self, model: str, keep_alive_s: float, now_s: float) -> None:
        """From now on it stays so long after its last request."""
        self._said[model] = _Said(keep_alive_s, now_s)

    def forget(self, model: str) -> None:
        """It is not loaded any more: what was said is over."""
        self._said.pop(model, None)

    def loaded(self, models: Set[str], *, ready: Set[str]) -> None:
        """Only these are loaded, or on the way to it; `ready` of them take requests."""
        self._ready_since = {model: self._ready_since.get(model) for model in ready}
        for model in self._said.keys() - models:
            if not self._in_flight_here(model):
                self.forget(model)

    def is_ours_alone(self, model: str, now_s: float) -> bool:
        """Whether nobody uses it but one request here, as far as can be known at once."""
        return self._in_flight_here(model) <= 1 and not self._living(now_s) and not self._spec_of(model).pin

    def take_due(self, now_s: float) -> list[str]:
        """Models to unload now; each is told once."""
        settle_s = SETTLE_S if self._living(now_s) else 0.0
        self._ready_since = {model: now_s if since is None else since for model, since in self._ready_since.items()}
        due = []
        for model in self._said.keys() | self._limited():
            until_s, said = self.until_s(model, now_s), self._said.get(model)
            if until_s is None or said != self._last_said(model, now_s) or self._in_flight(model, now_s):
                continue
            if until_s + settle_s <= now_s:
                due.append(model)
        for model in due:
            self.forget(model)
            self._ready_since.pop(model, None)
        return due

    def until_s(self, model: str, now_s: float) -> float | None:
        """When it will be unloaded if nothing happens; `None`: never."""
        spec, said = self._spec_of(model), self._last_said(model, now_s)
        keep_s = spec.ttl_s if said is None else said.keep_s
        if keep_s is None or keep_s < 0 or spec.pin:
            return None
        if self._in_flight(model, now_s):
            return now_s + keep_s
        ended_s = max([there.ended_s for there in self._there(model, now_s)], default=_NEVER)
        if (here := self._here.get(model)) is not None:
            ended_s = max(ended_s, here.ended_s)
        since_s = self._ready_since.get(model) if said is None else said.said_s
        return max(ended_s, now_s if since_s is None else since_s) + keep_s

    # Other gateways.

    def tell(self, now_s: float) -> list[ModelUse] | None:
        """What the others have to be told now, all of it; `None`: nothing. To be called a few times a second."""
        uses = [self._tell(model, now_s) for model in sorted(self._spoken_of(now_s))]
        # While one request follows the other only the first is news.
        news: list[object] = [
            (use.model, use.in_flight > 0, self._ended_s(use), self._said.get(use.model)) for use in uses
        ]
        if news == self._told and now_s - self._told_s < BEAT_S:
            return None
        self._told, self._told_s = news, now_s
        return uses

    def hear(self, gateway: str, uses: Sequence[ModelUse] | None, now_s: float) -> None:
        """Take what another gateway told: all that it has to tell; `None`: that it lives, and nothing new."""
        there: dict[str, _There] = {} if uses is not None else self._peers.get(gateway, (now_s, {}))[1]
        for use in uses or ():
            ended_s = _NEVER if use.idle_s is None else now_s - use.idle_s
            said = None if use.keep_s is None else _Said(use.keep_s, now_s - use.said_ago_s)
            there[use.model] = _There(use.in_flight, ended_s, said)
            ours = self._said.get(use.model)
            if said is not None and ours is not None and said.said_s > ours.said_s:
                del self._said[use.model]
        self._peers[gateway] = (now_s, there)

    def _tell(self, model: str, now_s: float) -> ModelUse:
        here, said = self._here.get(model) or _Here(), self._said.get(model)
        return ModelUse(
            model,
            here.in_flight,
            None if here.ended_s == _NEVER else now_s - here.ended_s,
            None if said is None else said.keep_s,
            0.0 if said is None else now_s - said.said_s,
        )

    def _ended_s(self, use: ModelUse) -> float | None:
        return None if use.in_flight else self._here.get(use.model, _Here()).ended_s

    def _spoken_of(self, now_s: float) -> set[str]:
        """Models that somebody has said something about, anywhere, or their entry has."""
        theirs = (there for _, told in self._living(now_s).values() for there in told.items())
        return set(self._said) | self._limited() | {model for model, there in theirs if there.said is not None}

    def _limited(self) -> set[str]:
        """Models in memory whose entry says how long they stay."""
        return {model for model in self._ready_since if self._spec_of(model).ttl_s is not None}

    def _last_said(self, model: str, now_s: float) -> _Said | None:
        said = [there.said for there in self._there(model, now_s) if there.said is not None]
        if (ours := self._said.get(model)) is not None:
            said.append(ours)
        return max(said, key=lambda each: each.said_s, default=None)

    def _in_flight(self, model: str, now_s: float) -> int:
        return self._in_flight_here(model) + sum(there.in_flight for there in self._there(model, now_s))

    def _in_flight_here(self, model: str) -> int:
        here = self._here.get(model)
        return 0 if here is None else here.in_flight

    def _there(self, model: str, now_s: float) -> list[_There]:
        return [told[model] for _, told in self._living(now_s).values() if model in told]

    def _living(self, now_s: float) -> dict[str, tuple[float, dict[str, _There]]]:
        """The other gateways."""
        gone = [gateway for gateway, (heard_s, _) in self._peers.items() if now_s - heard_s > FORGET_S]
        for gateway in gone:
            del self._peers[gateway]
        return self._peers

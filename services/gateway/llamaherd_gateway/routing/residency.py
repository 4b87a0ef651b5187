"""How long a model stays loaded after its last request, where clients say so (`keep_alive`). Pure: time is given.

The time runs from the end of the last request; every request that says something about it replaces what was said.
A model that nobody has said anything about stays: unloading idle models by configuration is the supervisor's.
"""

from collections import Counter

import msgspec


class _Kept(msgspec.Struct):
    keep_s: float
    until_s: float | None
    """Set while nobody uses it."""


class Residency:
    """What this gateway knows. Seconds are of one monotonic clock."""

    def __init__(self) -> None:
        self._using: Counter[str] = Counter()
        self._kept: dict[str, _Kept] = {}

    def begin(self, model: str) -> None:
        """A request uses it."""
        self._using[model] += 1
        if (kept := self._kept.get(model)) is not None:
            kept.until_s = None

    def end(self, model: str, keep_alive_s: float | None, now_s: float) -> None:
        """The request is over. `keep_alive_s`: negative for ever, 0 at once, `None` as before."""
        self._using[model] -= 1
        if keep_alive_s is not None:
            if keep_alive_s < 0:
                self._kept.pop(model, None)
            else:
                self._kept[model] = _Kept(keep_alive_s, None)
        if self._using[model] > 0:
            return
        del self._using[model]
        if (kept := self._kept.get(model)) is not None:
            kept.until_s = now_s + kept.keep_s

    def take_due(self, now_s: float) -> list[str]:
        """Models to unload now; each is told once."""
        due = [model for model, kept in self._kept.items() if kept.until_s is not None and kept.until_s <= now_s]
        for model in due:
            del self._kept[model]
        return due

    def until_s(self, model: str, now_s: float) -> float | None:
        """When it will be unloaded if nothing happens; `None`: never."""
        kept = self._kept.get(model)
        if kept is None:
            return None
        return kept.until_s if kept.until_s is not None else now_s + kept.keep_s

"""When one more instance of a model is to be started: while requests wait for its slots. Pure: time is given."""

from collections.abc import Callable, Collection, Mapping
from typing import Final

from llamaherd_shared.model_spec import ModelSpec

GROW_AFTER_S: Final = 1.0
"""Requests that have waited for so long do not go away by themselves."""
AGAIN_S: Final = 5.0
"""After one was asked for: the news that it is coming may take a moment."""
AFTER_FAILURE_S: Final = 60.0
"""After one that has failed, or for which there was no room."""
HERE: Final = frozenset({"ready", "draining", "stopping"})
COMING: Final = frozenset({"loading", "waiting", "backoff"})


class Growth:
    """What one gateway has seen of its queues."""

    def __init__(self, spec_of: Callable[[str], ModelSpec]) -> None:
        self._spec_of = spec_of
        self._waiting_since: dict[str, float] = {}
        self._asked_s: dict[str, float] = {}
        self._refused: set[str] = set()

    def due(self, waiting: Collection[str], states: Mapping[str, Collection[str]], now_s: float) -> list[str]:
        """Models that want one more instance now.

        `waiting`: models for whose slots requests wait; `states`: of each model's instances, on all nodes.
        """
        self._waiting_since = {model: self._waiting_since.get(model, now_s) for model in waiting}
        return sorted(model for model in waiting if self._is_due(model, states.get(model, ()), now_s))

    def _is_due(self, model: str, states: Collection[str], now_s: float) -> bool:
        most = self._spec_of(model).max_replicas
        if most is None or now_s - self._waiting_since[model] < GROW_AFTER_S or any(each in COMING for each in states):
            return False
        pause_s = AFTER_FAILURE_S if model in self._refused or "failed" in states else AGAIN_S
        if now_s - self._asked_s.get(model, -pause_s) < pause_s:
            return False
        here = sum(each in HERE for each in states)
        # While none is ready requests wait for a load, which is asked for by themselves.
        return "ready" in states and here < most

    def asked(self, model: str, now_s: float, *, refused: bool = False) -> None:
        """One was asked for; `refused`: there is no room for it."""
        self._asked_s[model] = now_s
        self._refused.discard(model)
        if refused:
            self._refused.add(model)

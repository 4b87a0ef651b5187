"""Which models were on a node that is gone now, and are nowhere else. Pure: the herd is followed as it changes."""

from collections import defaultdict
from collections.abc import Collection
from typing import Final

from llamaherd_gateway.projection import Fleet

LIVE: Final = frozenset({"waiting", "loading", "ready", "backoff"})
"""States of an instance that is to run."""
_WITH_ITS_NODE: Final = frozenset({"shutdown", "drained"})
"""Causes of an exit that nobody wanted for the model's own sake."""


class Losses:
    """What one gateway has seen happen. Of what was before it started it loads nothing elsewhere."""

    def __init__(self) -> None:
        self._had: dict[str, set[str]] = {}
        """Node -> models that are to run there, or were when it went."""
        self._here: frozenset[str] = frozenset()

    def follow(self, fleet: Fleet, away: Collection[str]) -> dict[str, frozenset[str]]:
        """Models to load elsewhere now -> nodes they are lost with; each loss is told once.

        `away`: nodes that are not heard any more.
        """
        here = frozenset(
            node.node for node in fleet.nodes.values() if node.joined and not node.draining and node.node not in away
        )
        had: defaultdict[str, set[str]] = defaultdict(set)
        for instance in fleet.instances.values():
            known = instance.model in self._had.get(instance.node, ())
            leaves = instance.state in ("draining", "stopping", "stopped") and instance.cause in _WITH_ITS_NODE
            if instance.state in LIVE or (known and leaves):
                had[instance.node].add(instance.model)
        left = self._here - here
        self._had, self._here = had, here
        elsewhere = {each.model for each in fleet.instances.values() if each.node in here and each.state in LIVE}
        lost = {model for node in left for model in had.get(node, ())}
        return {model: frozenset(left) for model in sorted(lost - elsewhere)}

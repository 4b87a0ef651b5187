"""Which node loads a model: nodes make offers, and the best one is taken. The same offers lead everyone to the same."""

from collections.abc import Collection, Iterable, Mapping
from typing import Final

from llamaherd_gateway.problems import UnknownModel
from llamaherd_gateway.projection import Fleet, Model
from llamaherd_gateway.routing.table import ModelUnusable, build_table, unknown_model_message
from llamaherd_shared.commands import Offer
from llamaherd_shared.events.placement import PlacementDecided

UNDER_WAY: Final[Mapping[str, int]] = {"ready": 0, "loading": 1, "waiting": 2, "backoff": 3}
"""States of an instance that make its node the place for another load: a second one elsewhere would be a waste."""
FRESH_S: Final = 10.0
"""So long a decision holds for others who ask at the same time. Then facts about the instance tell."""


def find_candidates(fleet: Fleet, model: str, away: Collection[str] = ()) -> list[str]:
    """Nodes that have the model and can serve it, sorted; `away`: those whose supervisors are not heard any more.

    Raises `UnknownModel` when nobody has the file, `ModelUnusable` when it cannot be served.
    """
    files = [found for found in fleet.models.values() if found.model == model]
    if not files:
        raise UnknownModel(unknown_model_message(model, build_table(fleet).known))
    here = [found for found in files if _joined(fleet, found.node) and found.node not in away]
    if not here:
        nodes = ", ".join(sorted(found.node for found in files))
        raise ModelUnusable(f"the model {model!r} is on {nodes}, where no supervisor runs now", retry_after_s=5)
    if all(fleet.nodes[found.node].draining for found in here):
        nodes = ", ".join(sorted(found.node for found in here))
        raise ModelUnusable(f"the model {model!r} is on {nodes}, which is drained for maintenance", retry_after_s=60)
    here = [found for found in here if not fleet.nodes[found.node].draining]
    usable = sorted(found.node for found in here if found.rejected is None)
    if not usable:
        raise _unusable(model, here)
    return usable


def _unusable(model: str, here: Collection[Model]) -> ModelUnusable:
    """Of several nodes the one where it is on its way."""
    found = min(here, key=lambda each: (each.retry_after_s is None, each.node))
    yet = "" if found.retry_after_s is None else " yet"
    text = f"the model {model!r} on {found.node} cannot be served{yet}: {found.rejected}"
    return ModelUnusable(text, retry_after_s=found.retry_after_s)


def settled_node(fleet: Fleet, model: str, candidates: Collection[str]) -> str | None:
    """The node where nothing has to be offered: the only one, or one that loads it already. `None`: ask."""
    if len(candidates) == 1:
        return next(iter(candidates))
    ranks = {
        instance.node: UNDER_WAY[instance.state]
        for instance in fleet.instances.values()
        if instance.model == model and instance.node in candidates and instance.state in UNDER_WAY
    }
    return min(ranks, key=lambda node: (ranks[node], node), default=None)


def is_fresh(decided: PlacementDecided, *, now_ns: int) -> bool:
    """Whether somebody has just decided it; what the clocks of two hosts differ by does not matter much."""
    return abs(now_ns - decided.at_ns) < FRESH_S * 1e9


def choose_offer(offers: Iterable[Offer]) -> Offer | None:
    """The best; `None`: there is none.

    Where nothing must be unloaded for it; then where it need not wait; then where least must be unloaded; then where it
    was loaded quickest; then where most stays free; ties go to the first node by name.
    """
    return min(offers, key=_rank, default=None)


def _rank(offer: Offer) -> tuple[bool, bool, int, float, float, str]:
    unknown = float("inf")
    load_s = unknown if offer.load_s is None else round(offer.load_s)
    return offer.evicts_bytes > 0, offer.waits, offer.evicts_bytes, load_s, -round(offer.free_ratio, 2), offer.node


def _joined(fleet: Fleet, node: str) -> bool:
    known = fleet.nodes.get(node)
    return known is not None and known.joined

"""Where a request goes: to a ready instance, or to a node that can load its model, or back with the known names."""

import difflib
from collections.abc import Container, Mapping
from typing import Final

import msgspec

from llamaherd_gateway.projection import Fleet, Instance, InstanceKey, Spawn
from llamaherd_shared.errors import Unavailable
from llamaherd_shared.model_options import LoadOptions, satisfies

NAMES_TOLD: Final = 20
"""How many known models an error names."""


class ModelUnusable(Unavailable):
    """The name is known, but no node can serve it now."""


class Table(msgspec.Struct, frozen=True):
    """The herd, arranged for one look-up per request. Built anew at every change."""

    ready: dict[str, tuple[Instance, ...]]
    """By model: instances that take work."""
    known: tuple[str, ...]
    """Every model that can be asked for, sorted."""
    unusable: tuple[str, ...]
    """Models of which only files are known that cannot be served, sorted."""
    training: dict[str, int]
    """By model: the longest context it was trained with on any node, as far as its files tell."""

    def ready_for(self, model: str, options: LoadOptions | None) -> tuple[Instance, ...]:
        """Those that take work and have what is asked for. `None`: any will do."""
        ready = self.ready.get(model, ())
        return ready if options is None else tuple(instance for instance in ready if _has(instance, options))


def _has(instance: Instance, options: LoadOptions) -> bool:
    return satisfies(options, instance.options, context_tokens=instance.context_tokens, slots=instance.slots)


def build_table(fleet: Fleet, written_off: Container[Spawn] = ()) -> Table:
    """A ready instance stays in even when its node's supervisor is gone: it outlives it.

    `written_off`: those that are said to be ready by a node that is gone, and are not.
    """
    ready: dict[str, tuple[Instance, ...]] = {}
    for key in sorted(fleet.instances):
        instance = fleet.instances[key]
        if instance.state == "ready" and instance.spawn not in written_off:
            ready[instance.model] = (*ready.get(instance.model, ()), instance)
    here = [model for model in fleet.models.values() if _joined(fleet, model.node)]
    known = {model.model for model in here if model.rejected is None} | set(ready)
    unusable = {model.model for model in here} - known
    training: dict[str, int] = {}
    for model in fleet.models.values():
        training[model.model] = max(training.get(model.model, 0), model.context_tokens)
    return Table(ready, tuple(sorted(known)), tuple(sorted(unusable)), training)


def pick_instance(
    instances: tuple[Instance, ...], in_flight: Mapping[InstanceKey, int], cached: Mapping[InstanceKey, int] = {}
) -> Instance:
    """The one with a free slot that has most of the request's beginning in its cache, else the least busy.

    `in_flight`: requests being answered; `cached`: blocks of the beginning (`affinity.py`). Busy is requests per
    slot; ties go to the first by name.
    """
    if len(instances) == 1:
        return instances[0]
    free = [instance for instance in instances if in_flight.get(instance.key, 0) < max(instance.slots, 1)]
    best = max(free, key=lambda instance: cached.get(instance.key, 0), default=None)
    if best is not None and cached.get(best.key, 0):
        return best
    return min(instances, key=lambda instance: in_flight.get(instance.key, 0) / max(instance.slots, 1))


def unknown_model_message(model: str, known: tuple[str, ...]) -> str:
    """One sentence that names what there is, and what was probably meant."""
    asked = model if len(model) <= 100 else model[:100] + "..."
    text = f"the model {asked!r} does not exist"
    folded = {name.casefold(): name for name in known}
    wanted = asked.casefold().removesuffix(".gguf")
    near = [wanted] if wanted in folded else difflib.get_close_matches(wanted, folded, n=1, cutoff=0.6)
    if near:
        text += f"; did you mean {folded[near[0]]!r}?"
    if not known:
        return f"{text}; no model is known: put a .gguf file into the models folder"
    more = f" and {len(known) - NAMES_TOLD} more (GET /v1/models)" if len(known) > NAMES_TOLD else ""
    separator = " Known:" if near else "; known:"
    return f"{text}{separator} {', '.join(known[:NAMES_TOLD])}{more}"


def _joined(fleet: Fleet, node: str) -> bool:
    known = fleet.nodes.get(node)
    return known is not None and known.joined

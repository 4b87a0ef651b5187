"""What clients are told of the herd's models: files, instances and aliases, put together for the dialects' lists."""

from collections.abc import Mapping

from llamaherd_gateway.dialects.dialect import Card, Loaded
from llamaherd_gateway.projection import Fleet, Instance, Model
from llamaherd_gateway.routing.table import Table

LOADED = ("loading", "ready", "draining", "stopping")
"""States in which an instance takes memory."""


def build_cards(
    fleet: Fleet, table: Table, aliases: Mapping[str, str], expires_ns: Mapping[str, int]
) -> tuple[Card, ...]:
    """One per name that can be asked for, sorted. `expires_ns`: when idle models will be unloaded."""
    files: dict[str, Model] = {}
    for file in fleet.models.values():
        if file.rejected is None:
            files.setdefault(file.model, file)
    loaded: dict[str, tuple[Loaded, ...]] = {}
    for key in sorted(fleet.instances):
        instance = fleet.instances[key]
        if instance.state in LOADED:
            here = _describe(instance, expires_ns.get(instance.model))
            loaded[instance.model] = (*loaded.get(instance.model, ()), here)
    names = {name: name for name in table.known}
    names |= {alias: model for alias, model in aliases.items() if model in names and alias not in names}
    return tuple(_card(name, model, files.get(model), loaded.get(model, ())) for name, model in sorted(names.items()))


def _describe(instance: Instance, expires_ns: int | None) -> Loaded:
    return Loaded(
        name=instance.name,
        node=instance.node,
        state=instance.state,
        context_tokens=instance.context_tokens,
        slots=instance.slots,
        options=instance.options,
        expires_ns=expires_ns,
    )


def _card(name: str, model: str, file: Model | None, loaded: tuple[Loaded, ...]) -> Card:
    if file is None:
        # Ready without a file: it was removed, or its node has left; the instance serves on.
        return Card(name=name, model=model, loaded=loaded)
    return Card(
        name=name,
        model=model,
        title=file.title,
        architecture=file.architecture,
        parameters=file.parameters,
        size_bytes=file.size_bytes,
        context_tokens=file.context_tokens,
        quantization=file.quantization,
        modified_ns=file.modified_ns,
        capabilities=frozenset(file.capabilities),
        loaded=loaded,
    )

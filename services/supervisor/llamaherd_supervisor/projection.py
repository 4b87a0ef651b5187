"""What the log tells a supervisor about its node when it starts: instances and model files."""

from collections.abc import Mapping
from typing import Any, get_args

import msgspec

from llamaherd_shared.events.instance import InstanceEvent
from llamaherd_shared.events.model import ModelEvent
from llamaherd_supervisor import lifecycle
from llamaherd_supervisor.lifecycle import Instance

_INSTANCE_EVENTS = get_args(InstanceEvent)
_MODEL_EVENTS = get_args(ModelEvent)


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """State of one node as its history folds."""

    instances: Mapping[tuple[str, int], Instance] = {}
    """By (model, index)."""
    models: Mapping[str, ModelEvent] = {}
    """The last fact about each model file."""


def evolve(known: Known, event: Any, *, node: str) -> Known:
    """Fold one fact in; facts of other kinds or nodes change nothing."""
    if getattr(event, "node", None) != node:
        return known
    if isinstance(event, _INSTANCE_EVENTS):
        key = (event.model, event.index)
        before = known.instances.get(key) or Instance(node=node, model=event.model, index=event.index)
        instances = {**known.instances, key: lifecycle.evolve(before, event)}
        return msgspec.structs.replace(known, instances=instances)
    if isinstance(event, _MODEL_EVENTS):
        return msgspec.structs.replace(known, models={**known.models, event.model: event})
    return known

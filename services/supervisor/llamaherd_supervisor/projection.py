"""What the log tells a supervisor about its node when it starts: instances, model files, open pulls."""

from collections.abc import Mapping
from typing import Any, get_args

import msgspec

from llamaherd_shared.events.instance import InstanceEvent, InstanceMeasured
from llamaherd_shared.events.model import ModelEvent
from llamaherd_shared.events.node import NodeDrained, NodeResumed
from llamaherd_shared.events.pull import PullFailed, PullFinished, PullStarted
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
    pulls: Mapping[str, PullStarted] = {}
    """Pulls that have not ended, by their id."""
    needs: Mapping[str, Mapping[str, int]] = {}
    """What models were measured to need, by plan and device (`InstanceMeasured`)."""
    drained: bool = False
    """Whether it was to take no loads when it was last told (`NodeDrained`)."""


def evolve(known: Known, event: Any, *, node: str) -> Known:
    """Fold one fact in; facts of other kinds or nodes change nothing."""
    if getattr(event, "node", None) != node:
        return known
    if isinstance(event, _INSTANCE_EVENTS):
        key = (event.model, event.index)
        before = known.instances.get(key) or Instance(node=node, model=event.model, index=event.index)
        instances = {**known.instances, key: lifecycle.evolve(before, event)}
        needs = {**known.needs, event.plan: event.needs} if isinstance(event, InstanceMeasured) else known.needs
        return msgspec.structs.replace(known, instances=instances, needs=needs)
    if isinstance(event, _MODEL_EVENTS):
        return msgspec.structs.replace(known, models={**known.models, event.model: event})
    if isinstance(event, NodeDrained | NodeResumed):
        return msgspec.structs.replace(known, drained=isinstance(event, NodeDrained))
    if isinstance(event, PullStarted):
        return msgspec.structs.replace(known, pulls={**known.pulls, event.pull: event})
    if isinstance(event, PullFinished | PullFailed):
        return msgspec.structs.replace(
            known, pulls={name: pull for name, pull in known.pulls.items() if name != event.pull}
        )
    return known

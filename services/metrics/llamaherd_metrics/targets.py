"""Which processes of this node to look at, folded from what the bus tells. Pure."""

from collections.abc import Mapping

import msgspec

from llamaherd_shared.events import Event
from llamaherd_shared.events.instance import InstanceExited, InstanceFailed, InstanceStarted
from llamaherd_shared.events.presence import Presence


class Target(msgspec.Struct, frozen=True):
    """A process to look at."""

    pid: int
    started_s: float | None = None
    """Its start, Unix seconds, against a reused process id; `None` when nobody told."""


Targets = Mapping[str, Target]
"""By source: `instance/<model>/<index>`, `service/<name>`."""


def evolve(targets: Targets, event: Event, *, node: str) -> Targets:
    """Follow the llama-servers of this node from `ev.instance`."""
    match event:
        case InstanceStarted() if event.node == node:
            started = Target(event.pid, event.process_started_s)
            return {**targets, f"instance/{event.model}/{event.index}": started}
        case InstanceExited() | InstanceFailed() if event.node == node:
            gone = f"instance/{event.model}/{event.index}"
            return {source: target for source, target in targets.items() if source != gone}
        case _:
            return targets


def hear(targets: Targets, presence: Presence, *, node: str) -> Targets:
    """Follow the services of this node from their beats.

    A service that is gone stays a target: reading its process tells that it is gone, and beats stop while the
    bus is away although the service lives.
    """
    if presence.node != node:
        return targets
    return {**targets, f"service/{presence.service}": Target(presence.pid)}

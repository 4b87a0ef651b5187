"""Facts about instances as a supervisor writes them, and the herd that a gateway folds from them."""

from typing import Any

from llamaherd_gateway.projection import Fleet, evolve
from llamaherd_shared.events.instance import InstanceExited, InstanceReady, InstanceStarted

NAMES: dict[str, Any] = {"node": "n1", "model": "m1", "at_ns": 1}


def started(generation: int = 1, **names: Any) -> InstanceStarted:
    values = NAMES | {"pid": 7, "process_started_s": 1.0, "host": "127.0.0.1", "port": 5000 + generation} | names
    return InstanceStarted(generation=generation, **values)


def ready(**names: Any) -> InstanceReady:
    return InstanceReady(**(NAMES | names), load_s=1.0, slots=4, context_tokens=512)


def exited(**fields: Any) -> InstanceExited:
    return InstanceExited(**(NAMES | {"cause": "crash"} | fields))


def fold(*events: Any) -> Fleet:
    fleet = Fleet()
    for sequence, event in enumerate(events, 1):
        fleet = evolve(fleet, event, sequence)
    return fleet

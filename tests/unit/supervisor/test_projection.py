"""What the log tells a supervisor about its node."""

from llamaherd_shared.events.instance import InstanceMeasured
from llamaherd_supervisor.projection import Known, evolve


def measured(plan: str, ram_bytes: int, *, node: str = "n") -> InstanceMeasured:
    return InstanceMeasured(node=node, model="m", at_ns=1, uses={"ram": 9}, needs={"ram": ram_bytes}, plan=plan)


def test_what_was_measured_last_is_what_a_plan_needs() -> None:
    known = Known()
    for event in (measured("p", 1), measured("q", 2), measured("p", 3), measured("p", 4, node="other")):
        known = evolve(known, event, node="n")

    assert known.needs == {"p": {"ram": 3}, "q": {"ram": 2}}

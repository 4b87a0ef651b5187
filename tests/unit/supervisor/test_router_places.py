"""Places in a router are given out by the rules that memory is given out by."""

import msgspec

from llamaherd_supervisor.budget import PLACES, RAM
from llamaherd_supervisor.estimate import Estimate, Part
from llamaherd_supervisor.eviction import Await, Decision, Evict, Grant, Refuse, Resident, Rules, Wish, decide
from llamaherd_supervisor.needs import Need, in_router

RULES = Rules(min_residence_s=5.0)
LIMITS = {RAM: 1000, PLACES: 2}
NOW_NS = 100 * 10**9
ALONE = Need(
    estimate=Estimate(parts=(Part("model", {RAM: 10}),)), formula=Estimate(parts=(Part("model", {RAM: 10}),)), plan="p"
)
WISH = Wish(key=("new", 0), estimate=in_router(ALONE).estimate, asked_ns=NOW_NS)
IDLE = Resident(key=("old", 0), holds={RAM: 10, PLACES: 1}, ready=True, ready_ns=1, used_ns=1)
OTHER = msgspec.structs.replace(IDLE, key=("other", 0), used_ns=2)
BUSY = msgspec.structs.replace(OTHER, key=("busy", 0), busy=True)
PINNED = msgspec.structs.replace(OTHER, key=("pinned", 0), pinned=True)
BESIDE = msgspec.structs.replace(OTHER, key=("beside", 0), holds={RAM: 10})


def decided(*residents: Resident) -> Decision:
    return decide([WISH], residents, LIMITS, rules=RULES, now_ns=NOW_NS)[WISH.key]


def test_a_model_of_the_router_needs_a_place_beside_its_memory() -> None:
    need = in_router(ALONE)

    assert need.estimate.needs == {RAM: 10, PLACES: 1}
    assert need.formula.needs == {RAM: 10}, "what is told of memory does not count places"


def test_a_free_place_is_taken() -> None:
    assert decided(IDLE) == Grant()


def test_models_beside_the_router_take_no_place() -> None:
    assert decided(IDLE, BESIDE, BESIDE) == Grant()


def test_without_a_free_place_the_one_used_longest_ago_goes() -> None:
    assert decided(OTHER, IDLE) == Evict((("old", 0),))


def test_nobody_goes_who_works_or_has_just_come() -> None:
    young = msgspec.structs.replace(IDLE, key=("young", 0), ready_ns=NOW_NS - 10**9)

    assert decided(BUSY, young) == Await("young, which has just been loaded")
    assert decided(BUSY, BUSY) == Await("busy, which is at work")


def test_a_router_full_of_pinned_models_takes_no_other_one() -> None:
    assert decided(PINNED, msgspec.structs.replace(PINNED, key=("second", 0))) == Refuse(
        "new needs 1 place of the router (itself 1 place), and 0 places are free of the 2 places of the router that"
        " models may have (pinned has 1 place, second has 1 place, and may not be unloaded for it)"
    )

"""Who gets the memory: named situations, and what is decided in each."""

import pytest

from llamaherd_supervisor.budget import RAM
from llamaherd_supervisor.estimate import Estimate, Part
from llamaherd_supervisor.eviction import (
    Await,
    Decision,
    Evict,
    Grant,
    Group,
    Refuse,
    Resident,
    Rules,
    Wish,
    choose_victims,
    decide,
)

SECOND = 10**9
GIB = 2**30
NOW = 1000 * SECOND
RULES = Rules(groups={"big": Group(swap=True), "alone": Group(exclusive=True)})
LIMITS = {RAM: 10 * GIB}


def wish(
    model: str, gib: float, *, asked_s: float = 999, priority: int = 0, group: str = "", may_evict: bool = True
) -> Wish:
    return Wish(
        key=(model, 0),
        estimate=Estimate(parts=(Part("model", {RAM: int(gib * GIB)}),)),
        asked_ns=int(asked_s * SECOND),
        priority=priority,
        group=group,
        may_evict=may_evict,
    )


def resident(
    model: str,
    gib: float,
    *,
    used_s: float = 500,
    ready_s: float = 100,
    ready: bool = True,
    leaving: bool = False,
    busy: bool = False,
    pinned: bool = False,
    spare: bool = False,
    priority: int = 0,
    group: str = "",
    index: int = 0,
    leaves_for: str = "",
) -> Resident:
    return Resident(
        key=(model, index),
        holds={RAM: int(gib * GIB)},
        ready=ready,
        leaving=leaving or bool(leaves_for),
        leaves_for=(leaves_for, 0) if leaves_for else None,
        busy=busy,
        pinned=pinned,
        spare=spare,
        priority=priority,
        group=group,
        ready_ns=int(ready_s * SECOND),
        used_ns=int(used_s * SECOND),
    )


def decided(wishes: list[Wish], residents: list[Resident], *, freed_s: float | None = None) -> dict[str, Decision]:
    freed_ns = None if freed_s is None else int(freed_s * SECOND)
    decisions = decide(wishes, residents, LIMITS, rules=RULES, now_ns=NOW, freed_ns=freed_ns)
    return {model: decision for (model, _), decision in decisions.items()}


def evict(*models: str) -> Evict:
    return Evict(tuple((model, 0) for model in models))


SITUATIONS: dict[str, tuple[Wish, list[Resident], Decision]] = {
    "what fits is granted": (wish("m", 4), [resident("a", 6)], Grant()),
    "what is used least lately goes first": (
        wish("m", 4),
        [resident("a", 5, used_s=600), resident("b", 5, used_s=400)],
        evict("b"),
    ),
    "the lowest priority goes before what is used least lately": (
        wish("m", 4),
        [resident("a", 5, used_s=600), resident("b", 5, used_s=400, priority=1)],
        evict("a"),
    ),
    "no more goes than must": (
        wish("m", 5),
        [resident("a", 1, used_s=1), resident("b", 4, used_s=2), resident("c", 5, used_s=3)],
        evict("a", "b"),
    ),
    "what one large model makes superfluous stays": (
        wish("m", 6),
        [resident("a", 1, used_s=1), resident("b", 9, used_s=2)],
        evict("b"),
    ),
    "what generates is not unloaded": (
        wish("m", 6),
        [resident("a", 9, busy=True)],
        Await("a, which is at work"),
    ),
    "what has just been loaded is waited for rather than what is worth more": (
        wish("m", 4),
        [resident("a", 5, priority=1), resident("b", 5, ready_s=998)],
        Await("b, which has just been loaded"),
    ),
    "what is idle goes rather than what generates": (
        wish("m", 4),
        [resident("a", 5, used_s=1, busy=True), resident("b", 5, used_s=2)],
        evict("b"),
    ),
    "what works for ever gets no new work in the end": (
        wish("m", 6, asked_s=900),
        [resident("a", 9, busy=True)],
        evict("a"),
    ),
    "what loads is not unloaded, however long one waits": (
        wish("m", 6, asked_s=1),
        [resident("a", 9, ready=False)],
        Await("a, which is loading"),
    ),
    "what has just been loaded stays a while": (
        wish("m", 6, asked_s=1),
        [resident("a", 9, ready_s=996)],
        Await("a, which has just been loaded"),
    ),
    "what leaves is waited for": (wish("m", 6), [resident("a", 9, leaving=True)], Await("a to be gone")),
    "pinned models make a load impossible": (
        wish("m", 6),
        [resident("a", 5, pinned=True), resident("b", 3)],
        Refuse(
            "m needs 6.0 GiB of RAM (model 6.0 GiB), and 5.0 GiB are free of the 10.0 GiB of RAM that models may have"
            " (a has 5.0 GiB, and may not be unloaded for it)"
        ),
    ),
    "what is larger than the budget is refused, and nothing goes for it": (
        wish("m", 11),
        [resident("a", 5)],
        Refuse(
            "m needs 11.0 GiB of RAM (model 11.0 GiB), and 10.0 GiB are free of the 10.0 GiB of RAM that models may"
            " have"
        ),
    ),
    "what nobody asked for is loaded where there is room, and only there": (
        wish("m", 6, may_evict=False),
        [resident("a", 5)],
        Refuse(
            "m needs 6.0 GiB of RAM (model 6.0 GiB), and 5.0 GiB are free of the 10.0 GiB of RAM that models may have"
            " (a has 5.0 GiB, and may not be unloaded for it)"
        ),
    ),
    "of a group only one is loaded": (wish("m", 1, group="big"), [resident("a", 1, group="big")], evict("a")),
    "other groups do not mind": (wish("m", 1, group="big"), [resident("a", 1, group="small")], Grant()),
    "an exclusive group has the node for itself": (
        wish("m", 1, group="alone"),
        [resident("a", 1), resident("b", 1, group="alone"), resident("p", 1, pinned=True)],
        evict("a"),
    ),
    "nothing comes beside an exclusive group": (wish("m", 1), [resident("a", 1, group="alone")], evict("a")),
    "one of the same group is waited for until it is gone": (
        wish("m", 1, group="big"),
        [resident("a", 1, group="big", leaving=True)],
        Await("a to be gone"),
    ),
}


@pytest.mark.parametrize("name", SITUATIONS)
def test_situation(name: str) -> None:
    asked, residents, expected = SITUATIONS[name]

    assert decided([asked], residents) == {"m": expected}


def test_later_load_does_not_take_what_an_earlier_one_waits_for() -> None:
    large, small, tiny = wish("large", 8, asked_s=990), wish("small", 3, asked_s=991), wish("tiny", 1, asked_s=992)

    decisions = decided([tiny, small, large], [resident("a", 7, busy=True)])

    assert decisions == {
        "large": Await("a, which is at work"),
        "small": Await("large, which was asked for first"),
        "tiny": Grant(),
    }


def test_higher_priority_is_served_first_until_the_other_has_waited_too_long() -> None:
    important = wish("important", 8, asked_s=995, priority=5)

    patient = decided([wish("m", 8, asked_s=990), important], [])
    overdue = decided([wish("m", 8, asked_s=900), important], [])

    assert (patient["important"], overdue["m"]) == (Grant(), Grant())
    assert patient["m"] == Await("important, which was asked for first")


def test_two_loads_are_not_granted_the_same_memory() -> None:
    decisions = decided([wish("a", 6, asked_s=1), wish("b", 4, asked_s=2), wish("c", 1, asked_s=3)], [])

    assert [type(decisions[model]) for model in "abc"] == [Grant, Grant, Await]


def test_two_of_one_group_are_loaded_one_after_the_other() -> None:
    decisions = decided([wish("a", 1, group="big"), wish("b", 1, group="big")], [])

    assert decisions["a"] == Grant()
    assert decisions["b"] == Await("a, which was asked for first and may not be loaded beside it")


def test_nothing_is_refused_while_freed_memory_may_still_come_back() -> None:
    """T8 (peers.md): a driver gives memory back later than the process has ended."""
    too_large = [wish("m", 11)]

    assert decided(too_large, [], freed_s=995) == {"m": Await("memory that was just freed to come back")}
    assert isinstance(decided(too_large, [], freed_s=985)["m"], Refuse)


def test_victims_are_chosen_by_the_device_that_is_short() -> None:
    on_ram = Resident(key=("r", 0), holds={RAM: 5}, used_ns=1)
    on_gpu = Resident(key=("g", 0), holds={"gpu0": 5, RAM: 1}, used_ns=2)

    assert choose_victims([on_ram, on_gpu], {"gpu0": 3}) == [on_gpu]
    assert choose_victims([on_ram, on_gpu], {"gpu1": 3}) is None


def test_one_instance_more_than_there_have_to_be_goes_before_the_last_one_of_a_model() -> None:
    residents = [resident("a", 5, used_s=1), resident("b", 1), resident("b", 4, used_s=900, spare=True, index=1)]

    assert decided([wish("m", 4)], residents) == {"m": Evict((("b", 1),))}


@pytest.mark.parametrize(
    ("going", "second"),
    [
        # What is free now is what the first one waits for: "a" will give back as much, but the first would wait for it.
        ([resident("x", 3, leaves_for="first"), resident("a", 3, leaves_for="second")], Await("a to be gone")),
        ([resident("x", 3, leaves_for="first"), resident("a", 3, leaves_for="third")], Await("a to be gone")),
        # Whoever waits for "x" waits for "a" in any case.
        ([resident("x", 3, leaves_for="first"), resident("a", 3, leaves_for="first")], Grant()),
        ([resident("x", 3, leaves_for="first"), resident("a", 3, leaving=True)], Grant()),
        ([resident("x", 4, leaves_for="first")], Grant()),
    ],
)
def test_nobody_takes_what_an_earlier_one_waits_for_in_exchange_for_what_is_not_back_yet(
    going: list[Resident], second: Decision
) -> None:
    decisions = decided([wish("first", 7, asked_s=1), wish("second", 3, asked_s=2)], going)

    assert isinstance(decisions["first"], Await)
    assert decisions["second"] == second


def test_instances_of_one_model_make_no_room_for_each_other() -> None:
    second = Wish(key=("m", 1), estimate=wish("m", 6).estimate, asked_ns=999 * SECOND)

    decision = decided([second], [resident("m", 6)])["m"]

    assert isinstance(decision, Refuse)
    assert "4.0 GiB are free of the 10.0 GiB of RAM" in decision.why
    assert "m has 6.0 GiB, and may not be unloaded for it" in decision.why


def test_memory_of_all_instances_of_a_model_counts() -> None:
    residents = [resident("a", 4), resident("a", 4, index=1)]

    decision = decided([wish("m", 4, may_evict=False)], residents)["m"]

    assert isinstance(decision, Refuse)
    assert "2.0 GiB are free" in decision.why

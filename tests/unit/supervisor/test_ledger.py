"""What is promised stays promised, and who waits keeps his turn."""

from llamaherd_supervisor.budget import RAM
from llamaherd_supervisor.estimate import Estimate, Part
from llamaherd_supervisor.eviction import Await, Evict, Grant, Refuse, Rules, Wish
from llamaherd_supervisor.ledger import Ledger, Standing

SECOND = 10**9
LIMITS = {RAM: 10}


def need(count: int) -> Estimate:
    return Estimate(parts=(Part("model", {RAM: count}),))


def wish(model: str, count: int, *, asked_s: int = 0) -> Wish:
    return Wish(key=(model, 0), estimate=need(count), asked_ns=asked_s * SECOND)


def test_promise_holds_from_the_decision_until_it_is_released() -> None:
    ledger = Ledger(Rules(release_s=0))
    ledger.wish(wish("a", 6))
    assert ledger.decide({}, LIMITS, now_ns=1) == {("a", 0): Grant()}

    ledger.wish(wish("b", 6))
    during = ledger.decide({("a", 0): Standing()}, LIMITS, now_ns=2)
    ledger.release(("a", 0), now_ns=3)
    after = ledger.decide({}, LIMITS, now_ns=4)

    assert during == {("b", 0): Await("a, which is loading")}
    assert after == {("b", 0): Grant()}
    assert (ledger.is_promised(("a", 0)), ledger.is_promised(("b", 0))) == (False, True)


def test_who_asks_again_keeps_his_turn_and_who_has_his_promise_does_not_wait() -> None:
    ledger = Ledger(Rules())
    ledger.wish(wish("a", 1, asked_s=5))
    ledger.wish(wish("a", 2, asked_s=9))
    assert ledger.waiting[("a", 0)] == wish("a", 2, asked_s=5)

    ledger.decide({}, LIMITS, now_ns=10 * SECOND)
    ledger.wish(wish("a", 2, asked_s=11))

    assert not ledger.waiting


def test_what_is_refused_does_not_wait_any_more() -> None:
    ledger = Ledger(Rules())
    ledger.wish(wish("a", 11))

    assert isinstance(ledger.decide({}, LIMITS, now_ns=SECOND)[("a", 0)], Refuse)
    assert not ledger.waiting


def test_room_is_made_for_a_load_as_long_as_that_waits() -> None:
    ledger = Ledger(Rules(min_residence_s=0))
    ledger.wish(wish("b", 8))
    ready = {("a", 0): Standing(ready=True, uses={RAM: 6})}
    assert ledger.decide(ready, LIMITS, now_ns=SECOND) == {("b", 0): Evict((("a", 0),))}
    going = {("a", 0): Standing(leaving=True, uses={RAM: 6})}

    (during,) = ledger.residents(going)
    ledger.withdraw(("b", 0))
    (after,) = ledger.residents(going)

    assert (during.leaves_for, after.leaves_for) == (("b", 0), None)


def test_offer_tells_what_a_load_would_cost_and_books_nothing() -> None:
    ledger = Ledger(Rules(min_residence_s=0))
    ready = {("a", 0): Standing(ready=True, uses={RAM: 6})}

    fits = ledger.preview(wish("b", 2), ready, LIMITS, now_ns=SECOND)
    evicts = ledger.preview(wish("b", 8), ready, LIMITS, now_ns=SECOND)
    ledger.wish(wish("c", 9))
    queued = ledger.preview(wish("b", 3, asked_s=1), ready, LIMITS, now_ns=SECOND)

    assert fits == (Grant(), 0, 0.2)
    assert evicts == (Evict((("a", 0),)), 6, 0.2)
    assert queued[0] == Await("c, which was asked for first")
    assert list(ledger.waiting) == [("c", 0)]


def test_ready_instance_counts_with_what_it_uses() -> None:
    ledger = Ledger(Rules(release_s=0))
    ledger.promise(("a", 0), need(9))
    ledger.wish(wish("b", 6))

    assert ledger.decide({("a", 0): Standing(ready=True, uses={RAM: 4})}, LIMITS, now_ns=SECOND) == {("b", 0): Grant()}


def test_process_without_a_promise_counts_with_what_it_uses() -> None:
    ledger = Ledger(Rules(min_residence_s=0))
    ledger.wish(wish("b", 6))

    decisions = ledger.decide({("a", 0): Standing(ready=True, uses={RAM: 9})}, LIMITS, now_ns=SECOND)

    assert decisions == {("b", 0): Evict((("a", 0),))}

"""How long a model stays loaded."""

from typing import Any

from harness.residency import exchange, two_gateways
from llamaherd_gateway.routing.residency import BEAT_S, FORGET_S, SETTLE_S, Residency
from llamaherd_shared.model_spec import ModelSpec


def used(residency: Residency, model: str, keep_alive_s: float | None, *, at_s: float = 0.0) -> Residency:
    residency.begin(model)
    residency.end(model, keep_alive_s, at_s)
    return residency


def test_the_time_runs_from_the_end_of_the_last_request() -> None:
    residency = used(Residency(), "m", 5.0, at_s=10)
    assert residency.until_s("m", 11) == 15

    residency.begin("m")
    assert residency.take_due(100) == []
    assert residency.until_s("m", 100) == 105
    residency.end("m", None, 200)

    assert residency.take_due(204) == []
    assert residency.take_due(205) == ["m"]
    assert residency.take_due(1000) == [], "told once"


def test_a_second_request_keeps_it_while_the_first_one_ends() -> None:
    residency = Residency()
    residency.begin("m")
    residency.begin("m")
    residency.end("m", 0, 1)
    assert residency.take_due(9) == []

    residency.end("m", None, 10)

    assert residency.take_due(10) == ["m"]


def test_for_ever_takes_back_what_was_said_before() -> None:
    residency = used(used(Residency(), "m", 5.0), "m", -1, at_s=1)

    assert residency.take_due(10**9) == []
    assert residency.until_s("m", 0) is None


def test_a_model_nobody_spoke_about_stays() -> None:
    assert used(Residency(), "m", None).take_due(10**9) == []


def test_what_was_said_ends_with_the_loading() -> None:
    residency = used(used(Residency(), "m", 5.0), "n", 5.0)

    residency.loaded({"n"}, ready=set())

    assert residency.take_due(100) == ["n"]


def test_it_is_ones_own_alone_until_somebody_else_may_use_it() -> None:
    residency = Residency()
    residency.begin("m")
    assert residency.is_ours_alone("m", 0)

    residency.begin("m")
    assert not residency.is_ours_alone("m", 0)
    residency.end("m", None, 1)
    residency.hear("g", [], 1)

    assert not residency.is_ours_alone("m", 1)
    assert residency.is_ours_alone("m", 2 + FORGET_S)


def configured(**said: Any) -> Residency:
    """`m` is ready, and its entry says this."""
    residency = Residency(lambda _: ModelSpec(**said))
    residency.loaded({"m"}, ready={"m"})
    return residency


def test_a_model_is_unloaded_when_its_time_is_over_although_nobody_said_anything() -> None:
    residency = configured(ttl_s=5.0)
    assert residency.take_due(100) == []
    assert residency.until_s("m", 101) == 105

    used(residency, "m", None, at_s=103)

    assert residency.take_due(107) == []
    assert residency.take_due(108) == ["m"]
    assert residency.take_due(200) == [], "told once"


def test_the_time_does_not_run_while_it_is_loading_or_at_work() -> None:
    residency = Residency(lambda _: ModelSpec(ttl_s=5.0))
    residency.loaded({"m"}, ready=set())
    assert residency.take_due(0) == residency.take_due(100) == []

    residency.loaded({"m"}, ready={"m"})
    residency.begin("m")
    assert residency.take_due(200) == residency.take_due(300) == []
    residency.end("m", None, 300)

    assert residency.take_due(304) == []
    assert residency.take_due(305) == ["m"]


def test_what_a_client_says_counts_more_than_what_is_configured() -> None:
    residency = used(configured(ttl_s=5.0), "m", 60, at_s=0)
    assert residency.take_due(59) == []
    assert residency.take_due(60) == ["m"]


def test_what_is_pinned_stays_whatever_is_said() -> None:
    residency = used(configured(ttl_s=5.0, pin=True), "m", 0, at_s=0)

    assert residency.take_due(10**6) == []
    assert residency.until_s("m", 5) is None
    assert not residency.is_ours_alone("m", 0), "nor does a client unload it"


def test_the_time_begins_anew_when_it_is_loaded_anew() -> None:
    residency = configured(ttl_s=5.0)
    assert residency.take_due(0) == []

    residency.loaded(set(), ready=set())
    residency.loaded({"m"}, ready={"m"})

    assert residency.take_due(100) == []
    assert residency.take_due(105) == ["m"]


# Several gateways.


def test_a_request_to_another_gateway_keeps_it() -> None:
    here, there = two_gateways()
    there.begin("m")
    used(here, "m", 1.0, at_s=1)
    exchange(1.1, here, there)
    exchange(1.2, here, there)

    assert here.take_due(2 + SETTLE_S) == []
    there.end("m", None, 4)
    exchange(4, here, there)

    assert here.until_s("m", 4) == there.until_s("m", 4) == 5
    assert here.take_due(5 + SETTLE_S) == ["m"]


def test_what_was_said_last_counts_wherever_it_was() -> None:
    here, there = two_gateways()
    used(here, "m", 1.0, at_s=1)
    exchange(1, here, there)
    used(there, "m", -1, at_s=1.5)
    exchange(1.5, here, there)

    assert here.until_s("m", 2) is None
    assert here.take_due(5) == there.take_due(5) == []


def test_only_the_gateway_that_was_told_unloads() -> None:
    here, there = two_gateways()
    used(here, "m", 1.0, at_s=1)
    exchange(1, here, there)

    assert there.take_due(2 + SETTLE_S) == []
    assert here.take_due(2 + SETTLE_S) == ["m"]
    exchange(3, here, there)

    assert there.until_s("m", 3) is None


def test_time_is_left_for_what_is_said_to_be_heard() -> None:
    here, _ = two_gateways()
    used(here, "m", 0, at_s=1)

    assert here.take_due(1 + SETTLE_S / 2) == []
    assert here.take_due(1 + SETTLE_S) == ["m"]


def test_a_gateway_that_is_gone_keeps_nothing_for_long() -> None:
    here, there = two_gateways()
    there.begin("m")
    used(here, "m", 0, at_s=1)
    exchange(1, here, there)
    exchange(1.1, here, there)
    assert here.take_due(1 + FORGET_S) == []

    assert here.take_due(1.2 + FORGET_S) == ["m"]


def test_nothing_is_told_again_and_again_while_nothing_is_new() -> None:
    residency = used(Residency(), "m", 60, at_s=0)
    assert residency.tell(0) is not None
    residency.begin("m")
    assert residency.tell(0.1) is not None
    assert residency.tell(0.2) is None
    for number in range(5):
        residency.begin("m")
        residency.end("m", None, 0.3 + number / 100)

    assert residency.tell(0.4) is None, "it is in use, as it was"
    assert residency.tell(0.1 + BEAT_S) is not None, "said again: a message may be lost"


def test_a_message_without_news_says_that_the_others_live() -> None:
    here, there = two_gateways()
    there.begin("m")
    used(here, "m", 0, at_s=1)
    exchange(1, here, there)
    exchange(1.1, here, there)

    here.hear("1", None, 6)

    assert here.take_due(2 + FORGET_S) == []


def test_a_request_to_another_gateway_keeps_what_only_its_entry_speaks_of() -> None:
    here, there = configured(ttl_s=1.0), configured(ttl_s=1.0)
    exchange(0, here, there)
    assert here.take_due(0) == there.take_due(0) == []
    there.begin("m")
    exchange(0.5, here, there)
    assert here.take_due(3) == []

    there.end("m", None, 4)
    exchange(4, here, there)

    assert here.take_due(4.9) == []
    assert here.take_due(5 + SETTLE_S) == there.take_due(5 + SETTLE_S) == ["m"]

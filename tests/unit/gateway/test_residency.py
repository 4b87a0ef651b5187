"""How long a model stays loaded."""

from llamaherd_gateway.routing.residency import Residency


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

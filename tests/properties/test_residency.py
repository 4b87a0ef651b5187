"""How long a model stays loaded, whatever is asked of two gateways."""

from hypothesis import given, settings
from hypothesis import strategies as st

from harness.residency import exchange, two_gateways

STEPS = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.sampled_from(["begin", "end"]),
        st.sampled_from([None, 0.0, 0.5, 3.0, -1.0]),
        st.booleans(),
    ),
    max_size=16,
)
"""(gateway, what happens there, keep alive in seconds, whether time goes by)"""


@settings(max_examples=500, deadline=None)
@given(STEPS)
def test_what_is_in_use_anywhere_is_never_unloaded(steps: list[tuple[int, str, float | None, bool]]) -> None:
    gateways, in_flight, now_s = two_gateways(), [0, 0], 0.0
    for number, step, keep_alive_s, slow in steps:
        if step == "begin":
            gateways[number].begin("m")
            in_flight[number] += 1
        elif in_flight[number]:
            gateways[number].end("m", keep_alive_s, now_s)
            in_flight[number] -= 1
        for _ in range(20 if slow else 1):
            now_s += 0.1
            exchange(now_s, *gateways)
            due = [gateway.take_due(now_s) for gateway in gateways]
            assert not any(due) or not sum(in_flight)

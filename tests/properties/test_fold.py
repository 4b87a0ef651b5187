from hypothesis import given, settings
from hypothesis import strategies as st

from llamaherd_shared.fold import Snapshot, replay


def total(state: int, event: int) -> int:
    return state + event


@settings(max_examples=500, deadline=None)
@given(st.lists(st.integers()), st.integers(0, 50))
def test_a_history_folded_in_two_parts_gives_the_same(events: list[int], cut: int) -> None:
    history = list(enumerate(events, start=1))
    empty = Snapshot(0)

    assert replay(total, replay(total, empty, history[:cut]), history) == replay(total, empty, history)

"""A short run of what `just chaos` does for half an hour."""

from harness.chaos import MODELS, Chaos, until_settled
from harness.deadline import wait_until
from harness.herd import Herd


def test_nothing_is_lost_and_nothing_is_left_over_whatever_is_killed_stopped_and_starved(own_herd: Herd) -> None:
    tally = Chaos(own_herd, seconds=25, clients=6, seed=7).run()
    print(tally)

    assert tally.lost == []
    assert tally.unexplained == []
    assert tally.answered > 0
    until_settled(own_herd)
    assert [own_herd.chat(model, "hello", max_tokens=2).status_code for model in MODELS] == [200] * len(MODELS)
    until_settled(own_herd)

    assert own_herd.stop() in (0, 130)
    wait_until(lambda: not own_herd.processes(), within_s=5, what="no process is left")

from llamaherd_shared.fold import Gap, Snapshot, find_gap, replay


def total(state: int, event: int) -> int:
    return state + event


def test_replay_skips_what_the_snapshot_already_holds() -> None:
    assert replay(total, Snapshot(10, 5), [(4, 1), (5, 1), (6, 7), (6, 7)]) == Snapshot(17, 6)


def test_a_gap_is_what_lies_between_checkpoint_and_first() -> None:
    assert find_gap(3, 4) is None
    assert find_gap(3, 3) is None
    assert find_gap(3, 7) == Gap(4, 6)

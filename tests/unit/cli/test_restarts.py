"""When a process that died is started again."""

from llamaherd.restarts import BAD_SETTINGS_EXIT, DELAYS_S, QUICK_S, GiveUp, Restart, next_start


def crash(times: int, *, lived_s: float = 1.0) -> list[Restart | GiveUp]:
    steps: list[Restart | GiveUp] = []
    count = 0
    for _ in range(times):
        step = next_start(exit_code=1, lived_s=lived_s, quick_crashes=count)
        steps.append(step)
        count = step.quick_crashes if isinstance(step, Restart) else 0
    return steps


def test_the_first_restart_comes_at_once() -> None:
    assert next_start(exit_code=-9, lived_s=3600, quick_crashes=0) == Restart(DELAYS_S[0], 1)


def test_quick_crashes_wait_longer_each_time_and_are_given_up() -> None:
    *restarts, last = crash(len(DELAYS_S) + 1)

    assert [step.after_s for step in restarts if isinstance(step, Restart)] == list(DELAYS_S)
    assert isinstance(last, GiveUp)


def test_a_process_that_lived_long_starts_the_count_anew() -> None:
    assert next_start(exit_code=1, lived_s=QUICK_S + 1, quick_crashes=7) == Restart(DELAYS_S[0], 1)


def test_refused_settings_are_not_tried_again() -> None:
    assert isinstance(next_start(exit_code=BAD_SETTINGS_EXIT, lived_s=0.1, quick_crashes=0), GiveUp)


def test_an_end_nobody_asked_for_is_a_crash_even_with_exit_code_zero() -> None:
    assert isinstance(next_start(exit_code=0, lived_s=0.1, quick_crashes=0), Restart)

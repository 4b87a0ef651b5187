"""For how long a server has been idle, or stood still."""

from llamaherd_supervisor.work import Use, Work, look_again


def after(*looks: Use | None) -> Work:
    """Ten seconds between two of them."""
    work = Work()
    for look in looks:
        work = look_again(work, look, after_s=10)
    return work


def test_a_server_whose_tokens_do_not_grow_stands_still() -> None:
    work = after(Use(1, tokens=5, newest=3), Use(1, tokens=5, newest=3), Use(1, tokens=5, newest=3))

    assert (work.still_s, work.idle_s) == (20, 0)


def test_one_token_more_is_headway() -> None:
    assert after(Use(1, tokens=5), Use(1, tokens=5), Use(1, tokens=6)).still_s == 0


def test_a_server_that_does_not_say_stands_still_and_is_not_idle() -> None:
    work = after(Use(0), Use(0), None, None)

    assert (work.still_s, work.idle_s) == (20, 0)


def test_a_server_that_tells_of_no_tokens_is_taken_to_go_on() -> None:
    assert after(Use(1), Use(1), Use(1)).still_s == 0


def test_a_server_without_work_is_idle_and_not_stuck() -> None:
    work = after(Use(1, tokens=5), Use(0, tokens=5), Use(0, tokens=5))

    assert (work.still_s, work.idle_s) == (0, 20)


def test_work_that_began_and_ended_between_two_looks_was_work() -> None:
    assert after(Use(0, newest=3), Use(0, newest=3), Use(0, newest=4)).idle_s == 0
    assert after(Use(0, newest=3), Use(0, newest=3), Use(0, newest=3)).idle_s == 30

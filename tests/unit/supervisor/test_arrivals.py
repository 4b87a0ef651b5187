"""When a file that is on its way may be read, offered and told of."""

from typing import Final

import pytest

from llamaherd_supervisor.arrivals import ON_ITS_WAY, Arrival, is_complete, may_be_read, notice, untold
from llamaherd_supervisor.gguf_file import GgufHead, UnreadableGguf
from llamaherd_supervisor.models import GgufFile, Sighting

SECOND: Final = 10**9
NOW: Final = 1_000 * SECOND
CUT = UnreadableGguf("the file ends within its header", truncated=True)
WHOLE = GgufHead(architecture="llama")


def seen(size_bytes: int = 100, *, ago_s: float = 0) -> Sighting:
    return Sighting("/models/cria.gguf", size_bytes, int(NOW - ago_s * SECOND))


def arrival(sighting: Sighting, head: GgufHead | UnreadableGguf | None = None) -> Arrival:
    """First seen now."""
    file = None if head is None else GgufFile(sighting, head)
    return Arrival(sighting, came_ns=NOW, same_ns=NOW, file=file)


def test_file_that_changed_long_ago_may_be_read_at_once() -> None:
    assert may_be_read(notice(None, seen(ago_s=0.6), now_ns=NOW), now_ns=NOW)
    assert not may_be_read(notice(None, seen(ago_s=0.4), now_ns=NOW), now_ns=NOW)


def test_file_that_grows_is_not_read_before_it_has_been_still() -> None:
    first = notice(None, seen(100), now_ns=NOW)

    grown = notice(first, seen(200, ago_s=-5), now_ns=NOW + 5 * SECOND)
    still = notice(grown, seen(200, ago_s=-5), now_ns=NOW + 6 * SECOND)

    assert not may_be_read(grown, now_ns=NOW + 5 * SECOND)
    assert may_be_read(still, now_ns=NOW + 6 * SECOND)
    assert grown.came_ns == still.came_ns == NOW


def test_file_that_was_read_is_read_again_when_it_has_changed() -> None:
    before = arrival(seen(100), CUT)

    assert notice(before, seen(100), now_ns=NOW).file is not None
    assert notice(before, seen(200), now_ns=NOW).file is None


def test_clock_of_another_host_that_is_ahead_holds_nothing_up() -> None:
    ahead = notice(None, seen(ago_s=-3600), now_ns=NOW)

    assert not may_be_read(ahead, now_ns=NOW)
    assert may_be_read(ahead, now_ns=NOW + SECOND)


@pytest.mark.parametrize(
    ("head", "ago_s", "complete"),
    [(None, 60, False), (WHOLE, 0.6, True), (CUT, 9, False), (CUT, 11, True), (UnreadableGguf("no GGUF"), 0.6, True)],
)
def test_file_whose_end_is_missing_is_waited_for_while_it_is_young(
    head: GgufHead | UnreadableGguf | None, ago_s: float, complete: bool
) -> None:
    assert is_complete(arrival(seen(ago_s=ago_s), head), now_ns=NOW) is complete


def test_what_takes_longer_than_a_moment_is_told_once_and_without_what_changes() -> None:
    first = notice(None, seen(100), now_ns=NOW)
    later = notice(first, seen(200), now_ns=NOW + 2 * SECOND)

    told = untold(first, now_ns=NOW + 2 * SECOND)

    assert untold(first, now_ns=NOW + SECOND // 2) is None
    assert told is not None
    assert told.head is ON_ITS_WAY
    assert untold(later, now_ns=NOW + 3 * SECOND) == told

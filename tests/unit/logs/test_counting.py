from functools import reduce

import pytest

from llamaherd_logs.counting import Count, count
from llamaherd_shared.events.line import Line, LinePack


def pack(first: int, size: int, *, dropped: int = 0) -> LinePack:
    lines = [Line(at_ns=1, level="info", text="x")] * size
    return LinePack(node="box", service="ui", unit="1", first=first, dropped=dropped, lines=lines)


def counted(*packs: LinePack) -> Count | None:
    known: Count | None = None
    return reduce(count, packs, known)


HISTORIES = {
    "nothing lost": ([pack(0, 3), pack(3, 2)], Count(5, 5, 0)),
    "a pack lost": ([pack(0, 3), pack(5, 2)], Count(7, 5, 2)),
    "dropped at the source is in the jump": ([pack(0, 3), pack(5, 2, dropped=2)], Count(7, 5, 2)),
    "dropped before the first we see": ([pack(4, 2, dropped=4)], Count(6, 2, 4)),
    "first seen late: what came before is unknown": ([pack(4, 2)], Count(6, 2, 0)),
    "sent again behind its successor": ([pack(0, 3), pack(5, 2), pack(3, 2)], Count(7, 7, 0)),
    "source started anew": ([pack(0, 3), pack(0, 2), pack(2, 1)], Count(3, 6, 0)),
    "started anew with losses": ([pack(0, 3), pack(0, 2, dropped=1), pack(4, 1)], Count(5, 6, 3)),
}


@pytest.mark.parametrize(("packs", "expected"), HISTORIES.values(), ids=HISTORIES)
def test_count(packs: list[LinePack], expected: Count) -> None:
    assert counted(*packs) == expected

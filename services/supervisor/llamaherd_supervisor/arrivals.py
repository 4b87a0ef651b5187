"""Files that are on their way into the models folder: when they may be read, and when they are told of. Pure.

Nobody tells that a copy is complete. A file that has been the same for a while is taken to be, if its tables say that
nothing is missing; a copy may put a file's full length in its place first and its content later, so while it changes
it is not even read.
"""

from typing import Final

import msgspec

from llamaherd_supervisor.gguf_file import UnreadableGguf
from llamaherd_supervisor.models import GgufFile, Sighting

SETTLED_S: Final = 0.5
"""Without a change for so long a file is read."""
YOUNG_S: Final = 10.0
"""A file whose end is missing and that changed less long ago than this is taken to be still on its way."""
TOLD_S: Final = 1.0
"""On its way for longer it is told as a model that cannot be served yet."""
ON_ITS_WAY: Final = UnreadableGguf("it is still being copied")


class Arrival(msgspec.Struct, frozen=True):
    """A file that is not offered yet."""

    seen: Sighting
    came_ns: int
    """When it was first on its way; like all times here on our clock, Unix nanoseconds."""
    same_ns: int
    """When it was first as it was last seen."""
    file: GgufFile | None = None
    """As it was last seen, once it was read."""


def notice(before: Arrival | None, seen: Sighting, *, now_ns: int) -> Arrival:
    """What is known of it after another look."""
    if before is None:
        return Arrival(seen, came_ns=now_ns, same_ns=now_ns)
    if before.seen != seen:
        return Arrival(seen, came_ns=before.came_ns, same_ns=now_ns)
    return before


def may_be_read(arrival: Arrival, *, now_ns: int) -> bool:
    """By its own time stamp, or by what we saw: the clock of the host that wrote it may be ahead."""
    unchanged_s = max(now_ns - arrival.seen.modified_ns, now_ns - arrival.same_ns) / 1e9
    return unchanged_s >= SETTLED_S


def is_complete(arrival: Arrival, *, now_ns: int) -> bool:
    """Whether nothing more is expected of it, once it was read."""
    if arrival.file is None:
        return False
    head = arrival.file.head
    unfinished = isinstance(head, UnreadableGguf) and head.truncated
    return not unfinished or max(now_ns - arrival.seen.modified_ns, now_ns - arrival.same_ns) >= YOUNG_S * 1e9


def untold(arrival: Arrival, *, now_ns: int) -> GgufFile | None:
    """What to tell of it meanwhile; `None`: nothing yet."""
    if now_ns - arrival.came_ns < TOLD_S * 1e9:
        return None
    # Without what changes from look to look: it is told once.
    return GgufFile(Sighting(arrival.seen.path, 0, 0), ON_ITS_WAY)

"""How many lines of a source never arrived, from the numbers on its packs. Pure."""

import msgspec

from llamaherd_shared.events.line import LinePack


class Count(msgspec.Struct, frozen=True):
    """What is known of one source."""

    next: int = 0
    """Number of the line expected next."""
    lines: int = 0
    """Lines that arrived."""
    missing: int = 0
    """Lines that were numbered and did not arrive."""


def count(known: Count | None, pack: LinePack) -> Count:
    """Count one more pack. `known` is `None` for the first one of a source.

    What the source itself reports as dropped was numbered, so it is in the jump of `first` already; only before
    the first pack we see is there no jump to read. A pack that was sent again may come after its successor: it
    fills the hole it left. Number 0 is a source that started anew.
    """
    size = len(pack.lines)
    if known is None:
        return Count(pack.first + size, size, pack.dropped)
    if pack.first == 0 and known.next > 0:
        return Count(size, known.lines + size, known.missing + pack.dropped)
    if pack.first < known.next:
        return Count(max(known.next, pack.first + size), known.lines + size, max(0, known.missing - size))
    return Count(pack.first + size, known.lines + size, known.missing + pack.first - known.next)

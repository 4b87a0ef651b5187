"""What a server works on, from look to look: for how long nothing has moved, and for how long it was idle. Pure."""

import msgspec


class Use(msgspec.Struct, frozen=True):
    """What a server works on."""

    busy: int
    """Slots at work."""
    tokens: int | None = None
    """That all slots have, which grows while one works; `None`: it does not say."""
    newest: int = -1
    """Number of the task that was begun last: it tells of what began and ended between two looks."""


class Work(msgspec.Struct, frozen=True):
    """As it was seen last."""

    use: Use | None = None
    """`None`: it has not said yet."""
    still_s: float = 0.0
    """For how long it has had something to do, or said nothing, and nothing has moved."""
    idle_s: float = 0.0


def look_again(work: Work, use: Use | None, *, after_s: float) -> Work:
    """After one more look; `use` is `None` when it did not say in time. What tells of no tokens is taken to go on."""
    before = work.use
    if use is None:
        return Work(before, work.still_s + after_s, 0.0)
    moved = not use.busy or use.tokens is None or before is None or use.tokens != before.tokens
    worked = use.busy > 0 or (before is not None and use.newest != before.newest)
    return Work(use, 0.0 if moved else work.still_s + after_s, 0.0 if worked else work.idle_s + after_s)

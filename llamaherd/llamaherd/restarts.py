"""When a process of the herd that died is started again. Pure: the shell tells how it ended and how long it lived."""

from typing import Final

import msgspec

QUICK_S: Final = 10.0
"""A process that died younger than this crashed quickly; an older one starts the count anew."""
DELAYS_S: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 5.0, 10.0)
"""Wait before each restart after quick crashes in a row. The first is short: the herd must be whole within 5 s."""
BAD_SETTINGS_EXIT: Final = 2
"""Exit code of a service whose settings cannot be used: trying again changes nothing."""


class Restart(msgspec.Struct, frozen=True):
    after_s: float
    quick_crashes: int
    """In a row, this one included."""


class GiveUp(msgspec.Struct, frozen=True):
    reason: str
    """Completes the sentence `<name> ...`."""


def next_start(*, exit_code: int, lived_s: float, quick_crashes: int) -> Restart | GiveUp:
    """What follows an exit nobody asked for. `exit_code` is negative for a signal, as in `subprocess`."""
    if exit_code == BAD_SETTINGS_EXIT:
        return GiveUp("refused its settings")
    count = quick_crashes + 1 if lived_s < QUICK_S else 1
    if count > len(DELAYS_S):
        return GiveUp(f"crashed {count} times in a row")
    return Restart(DELAYS_S[count - 1], count)

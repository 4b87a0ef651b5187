"""When to tell how far a pull is, how long to wait before trying again, and what a pull takes on disk."""

import email.utils
from typing import Final

import msgspec

TELL_EVERY_S: Final = 0.25
"""At most four facts a second ..."""
TELL_SLOW_S: Final = 1.0
"""... and one a second while less than `TELL_STEP` has come: a pull of hours stays some thousand facts."""
TELL_STEP: Final = 0.001
MAX_WAIT_S: Final = 300.0
"""However long a hub asks to wait: limits are counted over minutes."""
SPARE_BYTES: Final = 64 * 2**20
"""What a pull leaves free on the disk: logs and projections live there as well."""


class Told(msgspec.Struct, frozen=True):
    """What was told last."""

    at_s: float = 0.0
    done_bytes: int = -1
    note: str = ""


def is_worth_telling(told: Told, *, done_bytes: int, total_bytes: int, note: str, now_s: float) -> bool:
    """Whether progress becomes a fact now."""
    for_s = now_s - told.at_s
    if note != told.note:
        return True
    if for_s < TELL_EVERY_S or done_bytes == told.done_bytes:
        return False
    return for_s >= TELL_SLOW_S or done_bytes - told.done_bytes >= total_bytes * TELL_STEP


def retry_delay_s(attempt: int, *, base_s: float, asked_s: float | None, jitter: float) -> float:
    """Seconds before attempt `attempt` (the first repetition is 1): what the hub asked for, else doubling.

    `jitter` is a random number from 0 to 1: askers that failed together do not come back together.
    """
    if asked_s is not None:
        return min(asked_s, MAX_WAIT_S)
    return doubled_s(attempt, base_s=base_s * (0.75 + jitter / 2), most_s=MAX_WAIT_S)


def doubled_s(attempt: int, *, base_s: float, most_s: float) -> float:
    """Seconds before attempt `attempt` (the first repetition is 1): twice as many each time, up to `most_s`."""
    return min(base_s * 2.0 ** min(attempt - 1, 16), most_s)


def parse_retry_after(header: str, *, now_s: float) -> float | None:
    """Seconds from a `Retry-After` header, a number or a date (RFC 9110, 10.2.3); `None` when it is neither."""
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - now_s)
    except (ValueError, OverflowError):
        return None


def find_shortage(*, needed_bytes: int, free_bytes: int, others_bytes: int = 0) -> str:
    """Why there is not enough room, with the arithmetic; empty when there is. `others_bytes`: what other pulls take."""
    if not needed_bytes or needed_bytes + others_bytes + SPARE_BYTES <= free_bytes:
        return ""
    taken = f", other pulls will take {others_bytes:,}" if others_bytes else ""
    return f"it needs {needed_bytes:,} bytes, the disk has {free_bytes:,} free{taken}, and {SPARE_BYTES:,} stay free"

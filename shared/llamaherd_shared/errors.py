"""The three ways a request can fail that are not bugs. Everything else subclasses where it is raised.

The mapping to HTTP stands in `http_status`; the mapping to a reply on the bus in `bus/requests.py`.
"""

from typing import ClassVar


class HerdError(Exception):
    """An expected failure. `str()` is one clear sentence: what, where, what to do."""

    kind: ClassVar[str] = "unavailable"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Rejected(HerdError):
    """The caller's fault: asking again unchanged fails again."""

    kind = "rejected"


class NotFound(Rejected):
    """The caller named something that is not there."""

    kind = "not_found"


class Unavailable(HerdError):
    """Not now: the same request may succeed later."""

    kind = "unavailable"

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        """When to try again, seconds; `None` when nobody knows."""


class NoMemory(Unavailable):
    """There is no room for it, and asking again at once does not change that."""

    kind = "no_memory"


class Conflict(HerdError):
    """Somebody else wrote first (lost compare-and-set): read again, decide again."""

    kind = "conflict"


KINDS: dict[str, type[HerdError]] = {cls.kind: cls for cls in (Rejected, NotFound, Unavailable, NoMemory, Conflict)}


def http_status(error: HerdError) -> int:
    """The HTTP status of an expected failure (RFC 9110)."""
    match error:
        case NotFound():
            return 404
        case Rejected():
            return 400
        case Conflict():
            return 409
        case _:
            return 503

"""W3C trace context (https://www.w3.org/TR/trace-context/): whose request the running task works for."""

from contextvars import ContextVar
from typing import Final

traceparent: Final[ContextVar[str | None]] = ContextVar("traceparent", default=None)
"""The `traceparent` of what the running task works for; the bus sends it along with every message."""


def trace_id_of(header: str | None) -> str | None:
    """The trace id of a `traceparent`, 32 hex digits; `None` when there is none or it is malformed."""
    if header is None or len(header) < 55 or header[2] != "-" or header[35] != "-":
        return None
    trace_id = header[3:35]
    try:
        return trace_id if int(trace_id, 16) else None
    except ValueError:
        return None

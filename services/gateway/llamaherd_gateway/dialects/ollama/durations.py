"""Times as Ollama writes them: dates with nanoseconds, and how long a model is kept (reference: api-dialects, 1.7)."""

import re
from datetime import UTC, datetime
from typing import Any, Final

from llamaherd_gateway.dialects.ollama.names import quoted
from llamaherd_gateway.problems import BadRequest

LONGEST_NS: Final = 2**63 - 1
"""About 292 years: how long Ollama says a model is kept that is kept for ever."""

_UNITS_NS: Final = {
    "ns": 1,
    "us": 1_000,
    "\u00b5s": 1_000,
    "\u03bcs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
"""Both micro signs that Go accepts are here."""

_PART: Final = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)([^0-9.]*)")


def render_time(now_ns: int) -> str:
    """RFC 3339 in UTC, with nanoseconds."""
    seconds, rest_ns = divmod(now_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest_ns:09d}Z"


def read_keep_alive(value: Any) -> float | None:
    """`keep_alive` of a request in seconds: -1 for ever, `None` when nothing was said.

    A number is seconds, a string a duration in Go's notation. Raises `BadRequest`.
    """
    match value:
        case None:
            return None
        case bool():
            raise _refusal("Unsupported type: 'bool'")
        case int() | float() if value == value:
            wanted_ns = max(min(value, LONGEST_NS), -1) * 1e9  # first: a number may have more digits than a float
        case str():
            wanted_ns = _parse_duration(value)
        case _:
            kind = {float: "NaN", list: "list"}.get(type(value), "object")
            raise _refusal(f"Unsupported type: {kind!r}")
    if wanted_ns < 0 or wanted_ns > LONGEST_NS:
        return -1.0
    return int(wanted_ns) / 1e9


def _parse_duration(text: str) -> float:
    """Nanoseconds, e.g. of `1h30m`, `-1m`, `300ms`, `0` (Go's `time.ParseDuration`)."""
    sign = -1.0 if text.startswith("-") else 1.0
    rest = text[1:] if text[:1] in ("-", "+") else text
    if rest == "0":
        return 0.0
    at, total_ns = 0, 0.0
    while at < len(rest):
        part = _PART.match(rest, at)
        if part is None:
            break
        number, unit = part.groups()
        if not unit:
            raise _refusal(f"time: missing unit in duration {quoted(text)}")
        if unit not in _UNITS_NS:
            raise _refusal(f"time: unknown unit {quoted(unit)} in duration {quoted(text)}")
        total_ns += float(number) * _UNITS_NS[unit]
        at = part.end()
    if at == 0 or at < len(rest):
        raise _refusal(f"time: invalid duration {quoted(text)}")
    return sign * total_ns


def _refusal(message: str) -> BadRequest:
    return BadRequest(message, param="keep_alive", code="invalid_keep_alive")

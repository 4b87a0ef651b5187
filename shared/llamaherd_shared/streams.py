"""Every JetStream stream as plain data: what it holds, for how long, and why."""

from typing import Final, Literal

import msgspec

EVENTS: Final = "HERD_EVENTS"
REQUESTS: Final = "HERD_REQUESTS"
METRICS: Final = "HERD_METRICS"
LOGS: Final = "HERD_LOGS"
PRESENCE: Final = "HERD_PRESENCE"
CONVERSATIONS: Final = "HERD_CONVERSATIONS"

_DAY_S: Final = 86_400
_GB: Final = 2**30


class Stream(msgspec.Struct, frozen=True, kw_only=True):
    """One stream. Subjects are without the prefix."""

    name: str
    kind: str
    """First token of its subjects."""
    why: str
    max_age_s: int
    max_bytes: int
    storage: Literal["file", "memory"] = "file"
    duplicate_window_s: int = 120
    """How long a repeated `Nats-Msg-Id` is recognised."""
    compressed: bool = True
    """S2: three times less disk at no measurable cost in rate."""
    deny_delete: bool = True
    live: str | None = None
    """Where every stored message is repeated for core subscribers; `None`: nowhere."""
    last_per_subject: bool = False
    """Keep only the newest message of a subject, which may carry a time to live."""
    tells_expiry: bool = False
    """Say on the subject itself that its message has expired."""
    private: bool = False
    """Holds what people wrote: its writer alone reads it, by subject, and deletes single messages."""


STREAMS: Final[tuple[Stream, ...]] = (
    Stream(
        name=EVENTS,
        kind="ev",
        why="facts: the source of truth, small, kept for a year",
        max_age_s=365 * _DAY_S,
        max_bytes=2 * _GB,
        live="live.ev.>",
    ),
    Stream(
        name=REQUESTS,
        kind="req",
        why="one fact per request served",
        max_age_s=30 * _DAY_S,
        max_bytes=8 * _GB,
        live="live.req.>",
    ),
    Stream(
        name=METRICS,
        kind="met",
        why="samples: a buffer, history is in the projection of metrics",
        max_age_s=2 * _DAY_S,
        max_bytes=2 * _GB,
        duplicate_window_s=30,
    ),
    Stream(
        name=LOGS,
        kind="log",
        why="lines: a buffer, history is in the projection of logs",
        max_age_s=3 * _DAY_S,
        max_bytes=4 * _GB,
        duplicate_window_s=30,
        live="live.log.>",
    ),
    Stream(
        name=PRESENCE,
        kind="presence",
        why="who is alive: a beat expires after 15 s and its expiry is pushed",
        max_age_s=0,
        max_bytes=16 * 2**20,
        storage="memory",
        duplicate_window_s=1,
        compressed=False,
        deny_delete=False,
        last_per_subject=True,
        tells_expiry=True,
    ),
    Stream(
        name=CONVERSATIONS,
        kind="conv",
        why="answers that clients go on from, with what was asked: for as long as OpenAI keeps them",
        max_age_s=30 * _DAY_S,
        max_bytes=4 * _GB,
        deny_delete=False,
        last_per_subject=True,
        private=True,
    ),
)
"""All streams. docs/architecture.md is generated from it."""


def stream_name(name: str, prefix: str) -> str:
    """The real name under a prefix: other herds have other streams; `HERD_EVENTS` under `lab` is `LAB_EVENTS`."""
    return name if prefix == "herd" else name.replace("HERD", prefix.upper().replace(".", "-"), 1)

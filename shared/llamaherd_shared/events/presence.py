"""Who is alive. Written by every service every 5 s, expires after 15 s. Read by: supervisor, ui."""

from typing import Final

import msgspec

BEAT_S: Final = 5.0
TTL_S: Final = 15


class Presence(msgspec.Struct, frozen=True, kw_only=True):
    """One beat of one service."""

    node: str
    service: str
    version: str
    pid: int
    started_ns: int
    """When the process began, Unix nanoseconds."""
    ready: bool = False
    """Whether its projection has caught up and it serves."""
    note: str = ""
    """Why it is not ready, or what troubles it: one sentence."""

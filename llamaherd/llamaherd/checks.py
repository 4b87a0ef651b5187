"""What `doctor` found."""

import msgspec


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at."""

    name: str
    ok: bool
    found: str
    """What is there, one phrase."""
    fix: str = ""
    """What to do about it; empty when it is in order."""

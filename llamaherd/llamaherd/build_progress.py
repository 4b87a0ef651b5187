"""How far a download or a build is, read from the lines its tool prints."""

import re
from typing import Final

_NINJA: Final = re.compile(r"^\[(\d+)/(\d+)\]")
_MAKE: Final = re.compile(r"^\[\s*(\d+)%\]")
_PIP: Final = re.compile(r"^Progress (\d+) of (\d+)$")


def parse_build_line(line: str) -> float | None:
    """0 to 1 from ninja's `[12/208]` or make's `[ 12%]`; `None` for any other line."""
    if found := _NINJA.match(line):
        return _ratio(int(found[1]), int(found[2]))
    if found := _MAKE.match(line):
        return _ratio(int(found[1]), 100)
    return None


def parse_download_line(line: str) -> float | None:
    """0 to 1 from pip's `--progress-bar raw` (`Progress 12 of 208`); `None` for any other line."""
    found = _PIP.match(line.strip())
    return _ratio(int(found[1]), int(found[2])) if found else None


def _ratio(done: int, total: int) -> float:
    return min(1.0, done / total) if total > 0 else 0.0

"""The level of a llama-server log line."""

import re
from typing import Final

from llamaherd_shared.events.line import Level

_PREFIX: Final = re.compile(r"^(?:\d+\.\d\d\.\d\d\d\.\d\d\d )?([DIWE]) ")
"""`--log-prefix`, with or without `--log-timestamps`: `0.00.006.937 I srv  load_model: ...`."""
_BY_LETTER: Final[dict[str, Level]] = {"D": "debug", "I": "info", "W": "warning", "E": "error"}
_ERROR: Final = re.compile(r"\b(error|failed|fatal|abort(ed)?|GGML_ASSERT|terminate called)\b", re.IGNORECASE)
_WARNING: Final = re.compile(r"\bwarn(ing)?\b", re.IGNORECASE)
_CONTINUED: Final = re.compile(r"^\s|^$")


def level_of_line(line: str, previous: Level) -> Level:
    """The prefix decides; a line without one is judged by its words, an indented one belongs to the line before.

    A line without prefix comes from the runtime (an assertion, a backtrace) or from a llama-server that prints none.
    """
    if found := _PREFIX.match(line):
        return _BY_LETTER[found[1]]
    if _CONTINUED.match(line):
        return previous
    if _ERROR.search(line):
        return "error"
    return "warning" if _WARNING.search(line) else "info"

"""How a command ends: its exit codes, and the failures that only the command line knows."""

from typing import Final

from llamaherd_shared.errors import HerdError, NotFound, Rejected, Unavailable

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
NOT_FOUND: Final = 3
UNREACHABLE: Final = 4
INTERRUPTED: Final = 130


class Misused(Rejected):
    """The command cannot be understood or its settings cannot be used."""


class Unreachable(Unavailable):
    """Nobody answers at the herd's address."""


def exit_code_of(error: HerdError) -> int:
    match error:
        case Misused():
            return USAGE
        case NotFound():
            return NOT_FOUND
        case Unreachable():
            return UNREACHABLE
        case _:
            return FAILED

"""Exit codes."""

from llamaherd.failures import Misused, Unreachable, exit_code_of
from llamaherd_shared.errors import Conflict, NotFound, Rejected, Unavailable


def test_every_failure_has_its_exit_code() -> None:
    codes = {type(error): exit_code_of(error) for error in (
        Misused("x"), NotFound("x"), Unreachable("x"), Unavailable("x"), Rejected("x"), Conflict("x")
    )}  # fmt: skip

    assert codes == {Misused: 2, NotFound: 3, Unreachable: 4, Unavailable: 1, Rejected: 1, Conflict: 1}

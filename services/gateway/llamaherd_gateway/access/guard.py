"""What every request must pass before anything is done for it, on hot and other routes alike: `Host` and `Origin`."""

from collections.abc import Iterable

from llamaherd_gateway.access.cors import OLLAMA_ORIGINS, Cors, Preflight
from llamaherd_gateway.access.hosts import refuse_host
from llamaherd_gateway.problems import Problem
from llamaherd_gateway.relay.heads import Header


class Unacceptable(Exception):
    """The request is refused because of its head. Raised through the HTTP parser, which wraps it."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


class Guard:
    """The checks of a gateway."""

    def __init__(self, origins: Iterable[str], *, own_names: frozenset[str] | None) -> None:
        """`origins`: pages that may ask, beside those of this machine. `own_names`: `None` checks no `Host`."""
        self._cors = Cors((*origins, *OLLAMA_ORIGINS))
        self._own_names = own_names

    def judge(self, host: bytes | None, origin: bytes | None) -> tuple[Header, ...]:
        """Headers that the answer must carry. Raises `Unacceptable` (403)."""
        if self._own_names is not None and (why := refuse_host(host, self._own_names)) is not None:
            raise Unacceptable(Problem(status=403, message=why, code="host_not_allowed"))
        headers = self._cors.answer(origin, host)
        if headers is None:
            page = (origin or b"").decode("latin-1")[:100]
            text = f"pages of {page!r} may not use this gateway (`gateway.cors_origins`)"
            raise Unacceptable(Problem(status=403, message=text, code="origin_not_allowed"))
        return headers

    def preflight(
        self, origin: bytes | None, host: bytes | None, method: bytes | None, names: bytes | None
    ) -> Preflight | None:
        """The answer to an OPTIONS request (`Cors.preflight`)."""
        return self._cors.preflight(origin, host, method, names)

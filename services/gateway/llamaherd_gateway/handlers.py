"""Routes that do something to the herd: load and unload, pull, copy, delete. Each asks a supervisor and answers."""

from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec

from llamaherd_gateway.dialects.dialect import PageRequest, Reply


class Streaming(msgspec.Struct, frozen=True):
    """An answer that comes record by record."""

    records: AsyncIterator[bytes]
    """May raise `HerdError`: before the first record it becomes the answer, after it the last record."""
    content_type: str


class Handler(msgspec.Struct, frozen=True, kw_only=True):
    """One route that asks somebody else before it answers."""

    method: str
    path: str
    answer: Callable[[PageRequest, AsyncIterator[bytes]], Awaitable[Reply | Streaming]]
    """The second argument is the body as it comes, unless `takes_body`. Raises `HerdError`."""
    takes_body: bool = True
    """Whether the whole body stands in the request."""
    about: str = ""

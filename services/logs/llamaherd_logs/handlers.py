"""Queries other services ask of logs."""

import asyncio
import contextlib
import sqlite3
import time
from typing import Final

from llamaherd_logs.store import read_lines
from llamaherd_shared.commands import LineQuery, Lines
from llamaherd_shared.errors import Unavailable
from llamaherd_shared.projection import Projection

QUERY_TIMEOUT_S: Final = 3.0
"""A query is given up after this long: the caller waits 5 s."""
_CHECK_EVERY: Final = 10_000
"""Instructions of SQLite's machine between two looks at the clock: about 1 ms."""


class Handlers:
    """Answers from the projection, each query on a connection of its own."""

    def __init__(self, projection: Projection) -> None:
        self._projection = projection

    async def query(self, query: LineQuery) -> Lines:
        return await asyncio.to_thread(self._read, query)

    def _read(self, query: LineQuery) -> Lines:
        deadline = time.monotonic() + QUERY_TIMEOUT_S
        with contextlib.closing(self._projection.open_reader()) as db:
            db.set_progress_handler(lambda: time.monotonic() > deadline, _CHECK_EVERY)
            try:
                return read_lines(db, query)
            except sqlite3.OperationalError as error:
                if time.monotonic() > deadline:
                    sentence = f"the search took longer than {QUERY_TIMEOUT_S:g} s: narrow it by time or source"
                    raise Unavailable(sentence) from error
                raise

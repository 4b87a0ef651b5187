"""Queries other services ask of metrics."""

import asyncio
import contextlib
from collections.abc import Sequence

from llamaherd_metrics.rollup import Rung
from llamaherd_metrics.store import read_history
from llamaherd_shared.commands import History, HistoryQuery
from llamaherd_shared.projection import Projection


class Handlers:
    """Answers from the recorder's projection, each query on a connection of its own."""

    def __init__(self, projection: Projection, rungs: Sequence[Rung]) -> None:
        self._projection, self._rungs = projection, rungs

    async def history(self, query: HistoryQuery) -> History:
        return await asyncio.to_thread(self._read, query)

    def _read(self, query: HistoryQuery) -> History:
        with contextlib.closing(self._projection.open_reader()) as db:
            return read_history(db, self._rungs, query)

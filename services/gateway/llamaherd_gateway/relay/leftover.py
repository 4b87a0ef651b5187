"""An answer whose client has left, read to its end all the same: for an engine that does not survive an abort.

Until that end the request holds its slot, and keeps its model from being unloaded.
"""

import time
from typing import TYPE_CHECKING

from llamaherd_gateway.relay.heads import Head
from llamaherd_gateway.relay.upstream import Pool

if TYPE_CHECKING:
    from llamaherd_gateway.relay.relay import Relay


class Leftover:
    """Receives what nobody waits for (`upstream.Receiver`). Made by an exchange that ends, in its place."""

    def __init__(self, relay: "Relay", pool: Pool, model: str, *, holds_slot: bool) -> None:
        self._relay, self._pool, self._model, self._holds_slot = relay, pool, model, holds_slot
        pool.in_flight += 1
        relay.residency.begin(model)

    def received(self, head: Head | None, body: bytes, end: bool) -> None:
        if end:
            self._leave()

    def upstream_lost(self, *, before_first_byte: bool, reused: bool) -> None:
        self._leave()

    def _leave(self) -> None:
        self._pool.in_flight -= 1
        self._relay.residency.end(self._model, None, time.monotonic())
        if self._holds_slot:
            self._relay.admission.leave(self._model)

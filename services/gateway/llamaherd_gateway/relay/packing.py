"""Which events go out together: while the bus keeps up, what ended at the same moment; else as much as a message holds.

nats-server stores some thousand messages a second however small they are (`sync_interval: always`), so under a
flood it is the number of messages that has to stay small.
"""

from collections import deque
from typing import Final

import msgspec

from llamaherd_shared.events.request import MAX_BYTES, MAX_REQUESTS, pack_encoded

PACK_MARK: Final = "+"
"""Ends the message id of a pack: the id of its first request alone is that of the request sent singly."""


class Parcel(msgspec.Struct, frozen=True):
    """One message to offer to the bus."""

    subject: str
    message_id: str
    payload: bytes
    count: int
    """Requests in it."""


class Backlog:
    """Encoded events that wait to be offered, by subject, in their order; bounded."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: dict[str, deque[tuple[str, bytes]]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, subject: str, request_id: str, encoded: bytes) -> bool:
        """`False`: there are too many already, it was not taken."""
        if self._count >= self._limit:
            return False
        self._count += 1
        waiting = self._waiting.get(subject)
        if waiting is None:
            waiting = self._waiting[subject] = deque()
        waiting.append((request_id, encoded))
        return True

    def next(self) -> Parcel | None:
        """The next message, made of what waits for the subject whose turn it is. It stays here until `done`."""
        if not self._waiting:
            return None
        subject, waiting = next(iter(self._waiting.items()))
        first_id, first = waiting[0]
        taken, size = [first], len(first)
        for place in range(1, min(len(waiting), MAX_REQUESTS)):
            encoded = waiting[place][1]
            size += len(encoded)
            if size > MAX_BYTES:
                break
            taken.append(encoded)
        if len(taken) == 1:
            return Parcel(subject, first_id, first, 1)
        return Parcel(subject, first_id + PACK_MARK, pack_encoded(taken), len(taken))

    def done(self, parcel: Parcel) -> None:
        """The bus has taken what `next` gave; its subject goes to the end of the line."""
        waiting = self._waiting.pop(parcel.subject)
        for _ in range(parcel.count):
            waiting.popleft()
        self._count -= parcel.count
        if waiting:
            self._waiting[parcel.subject] = waiting

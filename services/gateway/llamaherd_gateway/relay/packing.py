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


class _Pack(msgspec.Struct):
    """Requests of one subject that go into one message, in their order; encoded, the first one's id beside them."""

    first_id: str
    requests: list[bytes]
    size: int


class Backlog:
    """Encoded events that wait to be offered, by subject, in their order; bounded."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: dict[str, deque[_Pack]] = {}
        """Never empty ones."""
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, subject: str, request_id: str, encoded: bytes) -> bool:
        """`False`: there are too many already, it was not taken."""
        if self._count >= self._limit:
            return False
        self._count += 1
        size = len(encoded)
        packs = self._waiting.get(subject)
        if packs is None:
            packs = self._waiting[subject] = deque()
        elif len((last := packs[-1]).requests) < MAX_REQUESTS and last.size + size <= MAX_BYTES:
            last.requests.append(encoded)
            last.size += size
            return True
        packs.append(_Pack(request_id, [encoded], size))
        return True

    def next(self) -> Parcel | None:
        """The next message, made of what waits for the subject whose turn it is.

        It stays here until `done`, before which nothing may be added.
        """
        if not self._waiting:
            return None
        subject, packs = next(iter(self._waiting.items()))
        requests, first_id = packs[0].requests, packs[0].first_id
        if len(requests) == 1:
            return Parcel(subject, first_id, requests[0], 1)
        return Parcel(subject, first_id + PACK_MARK, pack_encoded(requests), len(requests))

    def done(self, parcel: Parcel) -> None:
        """The bus has taken what `next` gave; its subject goes to the end of the line."""
        packs = self._waiting.pop(parcel.subject)
        packs.popleft()
        self._count -= parcel.count
        if packs:
            self._waiting[parcel.subject] = packs

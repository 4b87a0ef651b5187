"""Who may use a model's slots now, and who waits: one queue per model, fair between the parties that ask.

A party is whoever shares one place at the table: an API key, else a client's address. Parties take turns, each one's
requests keep their order; so a client with a thousand requests does not keep another one from its first.
"""

from collections import OrderedDict, deque
from typing import Final, Protocol

import msgspec

IDLE_QUEUES: Final = 256
"""Queues of models that nobody waits for are forgotten beyond this many."""


class Ticket(Protocol):
    """A request that waits (`exchange.py`)."""

    @property
    def party(self) -> str:
        """Whose it is; always the same."""

    def admitted(self) -> None:
        """It may use a slot now, and holds it until `Admission.leave`. Must not block."""


class QueueFull(Exception):
    """No more may wait for this model."""


class _Queue(msgspec.Struct):
    capacity: int
    active: int = 0
    waiting: OrderedDict[str, deque[Ticket]] = msgspec.field(default_factory=OrderedDict)
    """By party; the first one's turn is next."""
    length: int = 0


class Admission:
    """All queues of a gateway."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        """Tickets that may wait for one model."""
        self._queues: dict[str, _Queue] = {}

    def enter(self, model: str, ticket: Ticket) -> bool:
        """`True`: go, a slot is yours until `leave`. `False`: `ticket.admitted` will be called. Raises `QueueFull`."""
        queue = self._queues.get(model)
        if queue is None:
            queue = self._queues[model] = _Queue(0)
        if queue.active < queue.capacity and not queue.length:
            queue.active += 1
            return True
        if queue.length >= self._limit:
            raise QueueFull
        party = ticket.party
        waiting = queue.waiting.get(party)
        if waiting is None:
            waiting = queue.waiting[party] = deque()
        waiting.append(ticket)
        queue.length += 1
        return False

    def leave(self, model: str) -> None:
        """A request that was admitted has ended."""
        queue = self._queues[model]
        queue.active -= 1
        self._serve(queue)

    def withdraw(self, model: str, ticket: Ticket) -> None:
        """A request that waits gives up. Nothing happens when it does not wait."""
        queue, party = self._queues.get(model), ticket.party
        waiting = queue.waiting.get(party) if queue is not None else None
        if queue is None or waiting is None or ticket not in waiting:
            return
        waiting.remove(ticket)
        queue.length -= 1
        if not waiting:
            del queue.waiting[party]

    def set_capacity(self, capacities: dict[str, int]) -> None:
        """Slots of every model that has some; the others have none now."""
        for model, capacity in capacities.items():
            queue = self._queues.get(model)
            if queue is None:
                queue = self._queues[model] = _Queue(0)
            queue.capacity = capacity
            self._serve(queue)
        for model, queue in list(self._queues.items()):
            if model in capacities:
                continue
            queue.capacity = 0
            if len(self._queues) > IDLE_QUEUES and not queue.length and not queue.active:
                del self._queues[model]

    def position(self, model: str, ticket: Ticket) -> int:
        """How many go before it, and itself: 1 is next. 0: it does not wait."""
        queue, party = self._queues.get(model), ticket.party
        if queue is None or ticket not in queue.waiting.get(party, ()):
            return 0
        place = queue.waiting[party].index(ticket)
        parties = list(queue.waiting)
        turn = parties.index(party)
        # In each round before its own every party takes one; in its own round those whose turn is earlier.
        before = sum(
            min(len(waiting), place + (number < turn)) for number, waiting in enumerate(queue.waiting.values())
        )
        return before + 1

    @property
    def queued(self) -> list[str]:
        """Models that somebody waits for."""
        return [model for model, queue in self._queues.items() if queue.length]

    def waiting(self, model: str) -> int:
        """How many wait for a model."""
        queue = self._queues.get(model)
        return queue.length if queue is not None else 0

    def _serve(self, queue: _Queue) -> None:
        while queue.active < queue.capacity and queue.waiting:
            party, waiting = queue.waiting.popitem(last=False)
            ticket = waiting.popleft()
            if waiting:
                queue.waiting[party] = waiting
            queue.length -= 1
            queue.active += 1
            ticket.admitted()

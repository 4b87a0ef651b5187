"""Finding the node for a load: asks those that have the model what it would be like there, and settles it with the
other gateways by compare-and-set: two that ask at once end in one load."""

import asyncio
import time
from collections.abc import Collection
from typing import Final, Protocol, TypeVar

import msgspec

from llamaherd_gateway.routing.placement import choose_offer, find_candidates, is_fresh, settled_node
from llamaherd_gateway.store import View
from llamaherd_shared.bus import Recorded
from llamaherd_shared.commands import Offer, OfferLoad
from llamaherd_shared.errors import Conflict, HerdError, NoMemory, Unavailable
from llamaherd_shared.events import Event, decode_event
from llamaherd_shared.events.placement import PlacementDecided
from llamaherd_shared.service import new_id
from llamaherd_shared.streams import EVENTS
from llamaherd_shared.subjects import Subjects

OFFER_S: Final = 2.0
"""A node that has not answered by then makes no offer."""
_TRIES: Final = 5

A = TypeVar("A", bound=msgspec.Struct)


class Bids(Protocol):
    """The part of the bus that is needed here."""

    @property
    def subjects(self) -> Subjects: ...

    async def request(
        self, subject: str, command: msgspec.Struct, reply_type: type[A], *, timeout_s: float = 5.0
    ) -> A: ...

    async def newest(self, stream: str, subject: str, *, timeout_s: float) -> Recorded | None: ...

    async def append(self, subject: str, event: Event, *, msg_id: str, expected: int | None = None) -> int: ...


class Placing:
    """One gateway's."""

    def __init__(self, view: View, bus: Bids, *, by: str) -> None:
        self._view, self._bus, self._by = view, bus, by

    async def choose(self, command: OfferLoad, *, but: Collection[str] = ()) -> str:
        """The node to ask for this load, none of `but`.

        Raises `HerdError`: nobody has the model, or nobody takes it, and why.
        """
        everywhere = find_candidates(self._view.fleet, command.model, self._view.away)
        nodes = [node for node in everywhere if node not in but] or everywhere
        node = settled_node(self._view.fleet, command.model, nodes)
        if node is not None:
            return node
        for _ in range(_TRIES):
            decided, sequence = await self._decided(command.model)
            if decided is not None and decided.node in nodes:
                return decided.node
            if (best := await self._decide(command, nodes, after=sequence)) is not None:
                return best
        raise Unavailable(f"gateways cannot agree on a node for {command.model!r}", retry_after_s=2)

    async def choose_more(self, model: str) -> str | None:
        """The node to ask for one more instance of a model; `None`: somebody has just found one for it.

        Raises `HerdError`: nobody takes it, and why.
        """
        nodes = find_candidates(self._view.fleet, model, self._view.away)
        decided, sequence = await self._decided(model)
        if decided is not None:
            return None
        return await self._decide(OfferLoad(model=model, another=True), nodes, after=sequence)

    async def _decided(self, model: str) -> tuple[PlacementDecided | None, int]:
        """What somebody has just decided, and the sequence of what was decided last (0: nothing was)."""
        last = await self._bus.newest(EVENTS, self._bus.subjects.placement(model), timeout_s=OFFER_S)
        if last is None:
            return None, 0
        decided = decode_event(last.data)
        if isinstance(decided, PlacementDecided) and is_fresh(decided, now_ns=time.time_ns()):
            return decided, last.sequence
        return None, last.sequence

    async def _decide(self, command: OfferLoad, nodes: list[str], *, after: int) -> str | None:
        """The node with the best offer, written down for the others; `None`: another gateway has decided meanwhile."""
        best = await self._best(command, nodes)
        fact = PlacementDecided(model=command.model, node=best.node, at_ns=time.time_ns(), gateway=self._by)
        subject = self._bus.subjects.placement(command.model)
        try:
            await self._bus.append(subject, fact, msg_id=new_id(), expected=after)
        except Conflict:
            return None
        return best.node

    async def _best(self, command: OfferLoad, nodes: list[str]) -> Offer:
        answers = await asyncio.gather(*(self._ask(node, command) for node in nodes))
        best = choose_offer([answer for answer in answers if isinstance(answer, Offer)])
        if best is not None:
            return best
        errors = [answer for answer in answers if isinstance(answer, HerdError)]
        text = "; ".join(f"{node}: {error.message}" for node, error in zip(nodes, errors, strict=True))
        if any(isinstance(error, NoMemory) for error in errors):
            raise NoMemory(text)
        raise Unavailable(text, retry_after_s=2)

    async def _ask(self, node: str, command: OfferLoad) -> Offer | HerdError:
        subject = self._bus.subjects.command("supervisor", "offer", node=node)
        try:
            return await self._bus.request(subject, command, Offer, timeout_s=OFFER_S)
        except HerdError as error:
            return error

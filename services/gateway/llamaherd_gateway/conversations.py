"""Kept answers: put on the bus, walked back from one to the one before it, deleted. All gateways share them.

An answer is found by its id and with the API key that it was given to; nothing lists them (docs/adr/0014).
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import msgspec

from llamaherd_gateway.dialects.dialect import Asked, Memory
from llamaherd_gateway.problems import BadRequest
from llamaherd_gateway.settings import GatewaySettings
from llamaherd_shared.bus import Bus, Recorded
from llamaherd_shared.errors import HerdError, Unavailable
from llamaherd_shared.events import Undecodable, UnknownEvent, decode_event, encode_event
from llamaherd_shared.events.turn import TurnKept
from llamaherd_shared.streams import CONVERSATIONS

KEEP_S: Final = 2.0
"""How long the end of an answer waits until the answer is stored."""
ASK_S: Final = 5.0
"""How long one kept answer is asked for: time for nats-server to be restarted."""
MOST_TURNS: Final = 1024
"""Of one conversation: each is a question to the bus, which takes some tenths of a millisecond."""
ID_CHARACTERS: Final = 128
"""No id of ours is longer."""
HEADERS_BYTES: Final = 1024
"""More than the headers of a kept answer take."""
UNSTORED_BYTES: Final = 64 * 2**20
"""Of answers that nats-server has been sent and has not taken yet."""
_DAY_S: Final = 86_400


class Conversations:
    """The kept answers of a herd, as one gateway reads and writes them."""

    def __init__(self, bus: Bus, log: Any, settings: GatewaySettings) -> None:
        self._bus, self._log = bus, log
        self._on = settings.conversations == "on"
        self._ttl_s = max(1, round(settings.conversations_keep_days * _DAY_S))
        self._most_bytes = settings.max_body_bytes
        self._storing: set[asyncio.Task[str]] = set()
        self._unstored_bytes = 0
        self._given_up: set[str] = set()
        """Answers whose clients were told that they are not kept, while nats-server may still take them."""

    def admit(self, asked: Asked, memory: Memory) -> Asked:
        """What is asked of this gateway. Raises `BadRequest` when that is to remember something, and it does not."""
        if self._on:
            return asked
        if asked.previous:
            raise memory.off()
        return msgspec.structs.replace(asked, keep=False)

    async def resume(self, asked: Asked, memory: Memory, key: str) -> Asked:
        """What is asked, with all that was said before. Raises `BadRequest`, `Unavailable`."""
        turns = await self.turns(key, asked.previous, memory.missing)
        return msgspec.structs.replace(memory.resume(asked, turns), previous="")

    async def turns(self, key: str, response: str, missing: Callable[[str], BadRequest]) -> list[TurnKept]:
        """The conversation up to this answer, oldest turn first. Raises `missing`, `BadRequest`, `Unavailable`."""
        turns: list[TurnKept] = []
        size = 0
        while response:
            recorded = await self._find(key, response)
            if recorded is None:
                raise missing(response)
            size += len(recorded.data)
            if len(turns) >= MOST_TURNS or size > self._most_bytes:
                raise _too_long(self._most_bytes)
            turns.append(_decode(recorded))
            response = turns[-1].previous
        return turns[::-1]

    async def turn(self, key: str, response: str) -> TurnKept | None:
        """This answer alone; `None`: there is none. Raises `Unavailable`."""
        recorded = await self._find(key, response)
        return None if recorded is None else _decode(recorded)

    async def delete(self, key: str, response: str) -> bool:
        """`False`: there is no such answer. Raises `Unavailable`."""
        recorded = await self._find(key, response)
        if recorded is None:
            return False
        await self._bus.delete(CONVERSATIONS, recorded.sequence)
        return True

    async def keep(self, key: str, turn: TurnKept) -> bool:
        """Store it; `False`: it could not be stored in time, and nobody will find it."""
        payload = encode_event(turn)
        why = self._refuse(len(payload))
        if not why:
            storing = asyncio.create_task(self._store(key, turn, payload))
            self._storing.add(storing)
            storing.add_done_callback(self._storing.discard)
            try:
                await asyncio.wait({storing}, timeout=KEEP_S)
            finally:
                if not storing.done():
                    self._given_up.add(turn.response)
            why = storing.result() if storing.done() else f"nats-server did not take it within {KEEP_S:g} s"
        if why:
            self._log.warning("an answer is not kept for a next turn", response=turn.response, reason=why)
        return not why

    def _refuse(self, size: int) -> str:
        """Why a record of this size is not even tried to be stored; empty: it is."""
        most = self._bus.max_message_bytes - HEADERS_BYTES
        if size > most:
            return f"with its question it has {size} bytes, and nats-server takes {most} (its `max_payload`)"
        if not self._bus.connected:
            return "the bus is away"
        if self._unstored_bytes + size > UNSTORED_BYTES:
            return f"{self._unstored_bytes} bytes of answers wait for nats-server already"
        return ""

    async def _store(self, key: str, turn: TurnKept, payload: bytes) -> str:
        """Why it is not stored; empty: it is."""
        subject = self._bus.subjects.conversation(key, turn.response)
        self._unstored_bytes += len(payload)
        try:
            sequence = await self._bus.publish(subject, payload, msg_id=turn.response, ttl_s=self._ttl_s)
            if turn.response in self._given_up:
                await self._bus.delete(CONVERSATIONS, sequence)
        except HerdError as error:
            return error.message
        finally:
            self._unstored_bytes -= len(payload)
            self._given_up.discard(turn.response)
        return ""

    async def _find(self, key: str, response: str) -> Recorded | None:
        if len(response) > ID_CHARACTERS:
            return None
        subject = self._bus.subjects.conversation(key, response)
        return await self._bus.newest(CONVERSATIONS, subject, timeout_s=ASK_S)


def _decode(recorded: Recorded) -> TurnKept:
    try:
        turn = decode_event(recorded.data)
    except (UnknownEvent, Undecodable) as error:
        raise Unavailable(f"{recorded.subject} was kept by another version of the gateway: {error}") from error
    if not isinstance(turn, TurnKept):
        raise Unavailable(f"{recorded.subject} holds no kept answer")
    return turn


def _too_long(most_bytes: int) -> BadRequest:
    text = f"the conversation before this request has more than {MOST_TURNS} turns or {most_bytes} bytes "
    text += "(`gateway.max_body_bytes`): begin a new one with what matters of it"
    return BadRequest(text, code="conversation_too_long", param="previous_response_id")

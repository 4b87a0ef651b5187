"""A pipelined publisher with acknowledgements: what it took is stored exactly once, whatever happens to the server.

Every message carries a `Nats-Msg-Id`; what is not acknowledged in time is sent again with the same id, and
nats-server drops the copy. A time-out therefore never means "not stored": it means "not known yet, asking again".
"""

import asyncio
import contextlib
import itertools
import time
from collections import deque
from typing import Final

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from llamaherd_shared.bus import wire
from llamaherd_shared.errors import Conflict, HerdError
from llamaherd_shared.tasks import end

WINDOW: Final = 512
"""Messages in flight at once. Above 100,000 nats-server would drop; from 256 on the rate no longer grows."""
ACK_TIMEOUT_S: Final = 2.0
SWEEP_S: Final = 0.25
SPOOL_MESSAGES: Final = 50_000
"""Messages that wait while the bus is away; `offer` refuses beyond it."""

WRONG_LAST_SEQUENCE: Final = 10071
STORE_FULL: Final = 10077
EXPECTED_SUBJECT_SEQUENCE: Final = "Nats-Expected-Last-Subject-Sequence"
MESSAGE_ID: Final = "Nats-Msg-Id"


class PublishRefused(HerdError):
    """nats-server will not store this message however often it is sent."""

    kind = "rejected"

    def __init__(self, subject: str, code: int, description: str) -> None:
        super().__init__(f"the bus refused {subject}: {description} (JetStream error {code})")
        self.code = code


class WrongSequence(Conflict):
    """The compare-and-set of a subject failed."""

    def __init__(self, subject: str, description: str) -> None:
        super().__init__(f"{subject} has another writer: {description}")


class _AckError(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _Ack(msgspec.Struct):
    seq: int = 0
    duplicate: bool = False
    error: _AckError | None = None


class _Entry:
    __slots__ = ("future", "headers", "payload", "sent", "sent_at", "subject")

    def __init__(self, subject: str, payload: bytes, headers: dict[str, str], future: "asyncio.Future[int]") -> None:
        self.subject, self.payload, self.headers, self.future = subject, payload, headers, future
        self.sent_at = 0.0
        self.sent = 0


_DECODER: Final = msgspec.json.Decoder(_Ack)


class Publisher:
    """One acknowledgement inbox, one spool, one window. Messages leave in the order they came in.

    A message that is sent again may be stored after later ones: readers order by what is inside the message.
    """

    def __init__(self, nc: Client, *, window: int = WINDOW, spool: int = SPOOL_MESSAGES) -> None:
        self._nc = nc
        self._window = window
        self._spool_limit = spool
        self._spool: deque[tuple[str, _Entry]] = deque()
        self._in_flight: dict[str, _Entry] = {}
        self._tokens = itertools.count(1)
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._inbox = nc.new_inbox()
        self._tasks: list[asyncio.Task[None]] = []
        self.dropped = 0
        """Messages that `offer` turned away."""
        self.resent = 0
        self.duplicates = 0
        """Acknowledgements that said the message was already stored: resends that were not needed."""

    async def start(self) -> None:
        await self._nc.subscribe(f"{self._inbox}.*", cb=self._on_ack)
        self._tasks = [asyncio.create_task(self._pump()), asyncio.create_task(self._sweep())]

    def offer(self, subject: str, payload: bytes, headers: dict[str, str]) -> "asyncio.Future[int] | None":
        """Queue one message and return at once; `None` when the spool is full, which is counted."""
        if len(self._spool) >= self._spool_limit:
            self.dropped += 1
            return None
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._spool.append((str(next(self._tokens)), _Entry(subject, payload, headers, future)))
        self._idle.clear()
        self._wake.set()
        return future

    @property
    def waiting(self) -> int:
        """Messages that are not stored yet, as far as we know."""
        return len(self._spool) + len(self._in_flight)

    async def drain(self, timeout_s: float) -> bool:
        """Wait until everything taken is stored; `False` when time ran out first."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        return self._idle.is_set()

    async def close(self) -> None:
        await end(*self._tasks)
        for entry in [*self._in_flight.values(), *(entry for _, entry in self._spool)]:
            entry.future.cancel()

    async def _pump(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._spool and len(self._in_flight) < self._window and self._nc.is_connected:
                token, entry = self._spool.popleft()
                self._in_flight[token] = entry
                await self._send(token, entry)

    async def _send(self, token: str, entry: _Entry) -> None:
        entry.sent_at = time.monotonic()
        entry.sent += 1
        try:
            # A fresh dict each time: nats-py writes into the one it is given.
            await wire.publish(
                self._nc, entry.subject, entry.payload, reply=f"{self._inbox}.{token}", headers=dict(entry.headers)
            )
        except nats.errors.MaxPayloadError:
            self._finish(token, entry)
            size = len(entry.payload)
            entry.future.set_exception(PublishRefused(entry.subject, 0, f"{size} bytes are over the server's limit"))
        except nats.errors.Error:
            # Not connected, or the outgoing buffer is full: the sweep sends it again.
            pass

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            if not self._nc.is_connected:
                continue
            now = time.monotonic()
            late = [(t, e) for t, e in self._in_flight.items() if now - e.sent_at >= ACK_TIMEOUT_S]
            for token, entry in late:
                if token in self._in_flight:
                    self.resent += 1
                    await self._send(token, entry)
            self._wake.set()

    def resend_soon(self) -> None:
        """After a reconnect: what is in flight may have been lost on the old connection."""
        for entry in self._in_flight.values():
            entry.sent_at = 0.0

    async def _on_ack(self, msg: Msg) -> None:
        token = msg.subject[len(self._inbox) + 1 :]
        entry = self._in_flight.get(token)
        if entry is None:
            return
        if msg.headers and msg.headers.get("Status") == "503":
            # No stream listens (yet): it is being created, or its leader moves. Try again shortly.
            entry.sent_at = time.monotonic() - ACK_TIMEOUT_S + SWEEP_S
            return
        ack = _DECODER.decode(msg.data)
        if ack.error is not None and ack.error.code == 503 and ack.error.err_code != STORE_FULL:
            entry.sent_at = time.monotonic() - ACK_TIMEOUT_S + SWEEP_S
            return
        self._finish(token, entry)
        if entry.future.done():
            return
        if ack.error is None:
            self.duplicates += ack.duplicate
            entry.future.set_result(ack.seq)
        elif ack.error.err_code == WRONG_LAST_SEQUENCE:
            entry.future.set_exception(WrongSequence(entry.subject, ack.error.description))
        else:
            entry.future.set_exception(PublishRefused(entry.subject, ack.error.err_code, ack.error.description))

    def _finish(self, token: str, entry: _Entry) -> None:
        self._in_flight.pop(token, None)
        # Nobody may be waiting for an offered message: its failure must not be reported as never retrieved.
        entry.future.add_done_callback(_retrieve)
        if self._spool:
            self._wake.set()
        elif not self._in_flight:
            self._idle.set()


def _retrieve(future: "asyncio.Future[int]") -> None:
    if not future.cancelled():
        future.exception()

"""An ordered reader without acknowledgements: every stored message from a sequence on, once, across restarts.

An ephemeral pull consumer that needs no acks (the reader's own checkpoint is the truth), two pulls
outstanding, and a heartbeat: silence of 2.5 heartbeats, or a status that says the consumer is gone, means a
new consumer at the next sequence. Reads whole streams: partial wildcards cost nats-server three times more.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import api
from nats.js.client import JetStreamContext
from nats.js.errors import Error as JetStreamError

from llamaherd_shared.bus import wire
from llamaherd_shared.bus.recorded import Recorded, parse_ack_reply

BATCH: Final = 500
"""Messages per pull and the most in one batch: 500 rows a transaction is where SQLite stops gaining."""
PULLS_AHEAD: Final = 2
PULL_EXPIRES_S: Final = 5.0
HEARTBEAT_S: Final = 0.5
SILENCE_S: Final = 2.5 * HEARTBEAT_S
RETRY_S: Final = 0.1
INACTIVE_S: Final = 60.0
"""nats-server forgets the consumer of a reader that died after this long."""

_HARMLESS: Final = {"404", "408"}
"""A pull that found nothing, or ran out of time."""


class _Lost(Exception):
    """This consumer delivers no more: make a new one."""


async def read_stream(
    nc: Client, js: JetStreamContext, stream: str, *, after: int
) -> AsyncGenerator[list[Recorded], None]:
    """Yield batches of what `stream` holds behind sequence `after`, for ever, in order, nothing twice.

    An empty batch says that reading had to begin anew (nats-server restarted, the stream was replaced): a caller
    to whom it matters checks that this is still the stream it knows. What retention has deleted is skipped
    silently: compare sequences to see it (`fold.find_gap`).
    """
    again = False
    while True:
        consumer = _Consumer(nc, js, stream)
        try:
            await consumer.open(after + 1)
            if again:
                yield []
            again = True
            async for batch in consumer.batches():
                fresh = [recorded for recorded in batch if recorded.sequence > after]
                if fresh:
                    after = fresh[-1].sequence
                    yield fresh
        except (_Lost, JetStreamError, nats.errors.Error, TimeoutError):
            if nc.is_closed:
                raise
            await asyncio.sleep(RETRY_S)
        finally:
            await consumer.close()


class _Consumer:
    """One ephemeral consumer and what it has delivered so far."""

    def __init__(self, nc: Client, js: JetStreamContext, stream: str) -> None:
        self._nc, self._js, self._stream = nc, js, stream
        self._buffer: list[Recorded] = []
        self._wake = asyncio.Event()
        self._heard_at = 0.0
        self._wanted = 0
        """Messages asked for and not yet received."""
        self._lost: str | None = None
        self._pull_sizes: dict[str, int] = {}
        self._pulls = 0
        self._subscription: Subscription | None = None
        self._name = ""

    async def open(self, start: int) -> None:
        self._name = f"reader-{self._nc._nuid.next().decode()}"
        self._inbox = self._nc.new_inbox()
        self._subscription = await self._nc.subscribe(f"{self._inbox}.*", cb=self._on_message)
        await self._js.add_consumer(
            self._stream,
            api.ConsumerConfig(
                name=self._name,
                ack_policy=api.AckPolicy.NONE,
                deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE,
                opt_start_seq=start,
                mem_storage=True,
                num_replicas=1,
                inactive_threshold=INACTIVE_S,
            ),
        )
        self._heard_at = time.monotonic()

    async def batches(self) -> AsyncIterator[list[Recorded]]:
        while True:
            while self._wanted <= BATCH * (PULLS_AHEAD - 1) and len(self._buffer) < BATCH * PULLS_AHEAD:
                await self._pull()
            if not self._buffer:
                await self._wait()
                continue
            batch, self._buffer = self._buffer[:BATCH], self._buffer[BATCH:]
            yield batch

    async def close(self) -> None:
        if self._subscription is not None:
            with contextlib.suppress(nats.errors.Error):
                await self._subscription.unsubscribe()
        if self._lost is None and self._nc.is_connected and self._subscription is not None:
            with contextlib.suppress(nats.errors.Error, JetStreamError, TimeoutError):
                await self._js.delete_consumer(self._stream, self._name)

    async def _wait(self) -> None:
        self._wake.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HEARTBEAT_S):
                await self._wake.wait()
        if self._buffer:
            return
        if self._lost is not None:
            raise _Lost(self._lost)
        if time.monotonic() - self._heard_at > SILENCE_S:
            self._lost = "heartbeats missed"
            raise _Lost(self._lost)

    async def _pull(self) -> None:
        self._pulls += 1
        token = str(self._pulls)
        self._pull_sizes[token] = BATCH
        self._wanted += BATCH
        wish = {
            "batch": BATCH,
            "expires": int(PULL_EXPIRES_S * 1e9),
            "idle_heartbeat": int(HEARTBEAT_S * 1e9),
        }
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._name}"
        await wire.publish(self._nc, subject, json.dumps(wish).encode(), reply=f"{self._inbox}.{token}")

    async def _on_message(self, msg: Msg) -> None:
        self._heard_at = time.monotonic()
        status = msg.headers.get("Status") if msg.headers else None
        if status is not None and not msg.reply.startswith("$JS.ACK"):
            self._on_status(status, msg)
            return
        self._wanted -= 1
        sequence, at_ns, pending = parse_ack_reply(msg.reply)
        self._buffer.append(Recorded(self._stream, sequence, at_ns, msg.subject, msg.data, pending, msg.headers))
        self._wake.set()

    def _on_status(self, status: str, msg: Msg) -> None:
        if status == "100":
            return
        headers = msg.headers or {}
        asked = self._pull_sizes.pop(msg.subject.rsplit(".", 1)[1], 0)
        self._wanted -= int(headers.get("Nats-Pending-Messages", asked))
        description = headers.get("Description", "")
        if status not in _HARMLESS and not (status == "409" and "Batch" in description):
            self._lost = f"{status} {description}"
        self._wake.set()

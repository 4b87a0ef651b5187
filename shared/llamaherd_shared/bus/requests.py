"""Commands and queries over request/reply: answered at once, concurrently, drained on stop.

A refusal crosses the bus as the error's kind and sentence in the headers and is raised again at the caller.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from llamaherd_shared.bus import wire
from llamaherd_shared.errors import KINDS, HerdError, Rejected, Unavailable
from llamaherd_shared.log import structlog
from llamaherd_shared.trace import traceparent

R = TypeVar("R", bound=msgspec.Struct)
A = TypeVar("A", bound=msgspec.Struct)

ERROR_KIND: Final = "Herd-Error-Kind"
TRACEPARENT: Final = "traceparent"
"""W3C trace context, lower case: nats-server passes it on untouched."""
_log = structlog.get_logger("llamaherd.bus")


class _Refusal(msgspec.Struct):
    message: str
    retry_after_s: float | None = None


class Served:
    """One subject being answered."""

    def __init__(self, nc: Client, handler: Callable[[Msg], Awaitable[None]], concurrency: int) -> None:
        self._nc, self._handler = nc, handler
        self._slots = asyncio.Semaphore(concurrency)
        self._running: set[asyncio.Task[None]] = set()
        self._subscription: Subscription | None = None

    async def open(self, subject: str, queue: str) -> None:
        self._subscription = await self._nc.subscribe(subject, queue=queue, cb=self._on_request)
        await wire.barrier(self._nc)

    async def _on_request(self, msg: Msg) -> None:
        # nats-py runs the callbacks of one subscription one after the other: a task each lets them overlap.
        task = asyncio.create_task(self._run(msg))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _run(self, msg: Msg) -> None:
        async with self._slots:
            await self._handler(msg)

    async def drain(self) -> None:
        """Take no more; finish what is being answered."""
        if self._subscription is not None and self._nc.is_connected:
            # Not `unsubscribe`: what nats-server sent before it heard of that would never be answered.
            with contextlib.suppress(nats.errors.Error, TimeoutError):
                # UNSUB and a real barrier first: in nats-py's own drain the PING can overtake the UNSUB.
                await self._nc._send_unsubscribe(self._subscription._id)
                await wire.barrier(self._nc)
                await self._subscription.drain()  # type: ignore[no-untyped-call]
        await asyncio.gather(*self._running, return_exceptions=True)


async def serve(
    nc: Client,
    subject: str,
    request_type: type[R],
    handler: Callable[[R], Awaitable[msgspec.Struct]],
    *,
    concurrency: int,
    queue: str,
) -> Served:
    """Answer `subject` with `handler`; instances that share `queue` share the requests."""
    decoder = msgspec.json.Decoder(request_type)

    async def answer(msg: Msg) -> None:
        headers: dict[str, str] | None = None
        reply: msgspec.Struct
        # A task of its own answers each request: what is set here ends with it.
        traceparent.set(msg.headers.get(TRACEPARENT) if msg.headers else None)
        try:
            reply = await handler(decoder.decode(msg.data))
        except HerdError as error:
            retry_after_s = error.retry_after_s if isinstance(error, Unavailable) else None
            headers, reply = {ERROR_KIND: error.kind}, _Refusal(error.message, retry_after_s)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            headers, reply = {ERROR_KIND: Rejected.kind}, _Refusal(f"cannot read the request on {subject}: {error}")
        except Exception:
            _log.exception("request failed", subject=subject)
            headers = {ERROR_KIND: Unavailable.kind}
            reply = _Refusal(f"{subject} failed; the service's log has the details")
        try:
            await nc.publish(msg.reply, msgspec.json.encode(reply), headers=headers)
        except nats.errors.Error as error:
            _log.warning("answer could not be sent", subject=subject, error=str(error))

    served = Served(nc, answer, concurrency)
    await served.open(subject, queue)
    return served


async def request(nc: Client, subject: str, command: msgspec.Struct, reply_type: type[A], *, timeout_s: float) -> A:
    """Ask and return the answer. Raises the refusal, or `Unavailable` when nobody answers in time."""
    try:
        trace = traceparent.get()
        headers = None if trace is None else {TRACEPARENT: trace}
        reply = await nc.request(subject, msgspec.json.encode(command), timeout=timeout_s, headers=headers)
    except nats.errors.NoRespondersError as error:
        raise Unavailable(f"nobody answers {subject}: that service is not running", retry_after_s=2) from error
    except (nats.errors.TimeoutError, TimeoutError) as error:
        raise Unavailable(f"{subject} did not answer within {timeout_s:g} s", retry_after_s=2) from error
    except nats.errors.Error as error:
        raise Unavailable(f"the bus is away ({error}); it reconnects by itself", retry_after_s=2) from error
    kind = reply.headers.get(ERROR_KIND) if reply.headers else None
    if kind is not None:
        raise _refused(kind, msgspec.json.decode(reply.data, type=_Refusal))
    return msgspec.json.decode(reply.data, type=reply_type)


def _refused(kind: str, refusal: _Refusal) -> HerdError:
    error = KINDS.get(kind, HerdError)(refusal.message)
    if isinstance(error, Unavailable):
        error.retry_after_s = refusal.retry_after_s
    return error

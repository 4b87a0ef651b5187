"""The one way our code publishes through nats-py: with cancellation that works."""

import asyncio

from nats.aio.client import Client


async def publish(
    nc: Client, subject: str, payload: bytes, *, reply: str = "", headers: dict[str, str] | None = None
) -> None:
    """Publish without acknowledgement. Raises `CancelledError` when the task was cancelled meanwhile."""
    await nc.publish(subject, payload, reply=reply, headers=headers)
    heed_cancellation()


def heed_cancellation() -> None:
    """Raise `CancelledError` if the running task was cancelled: call it after nats-py has had the word.

    nats-py 2.16 swallows a cancellation that hits inside its flush (`_flush_pending`); without this check a
    cancelled loop would go on for ever.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def barrier(nc: Client) -> None:
    """Return once nats-server has acted on everything published and subscribed so far.

    In nats-py 2.16 `flush()` alone is none: its PING can overtake a queued SUB (12 of 300 requests found
    nobody subscribed; 0 of 300 with the turn of the loop in between).
    """
    await asyncio.sleep(0)
    # A cancelled flush leaves a future behind that ends nats-py's reading when its PONG comes: let it finish alone.
    flush = asyncio.ensure_future(nc.flush())
    flush.add_done_callback(lambda done: done.cancelled() or done.exception())
    await asyncio.shield(flush)

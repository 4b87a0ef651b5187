"""Ending asyncio tasks so that they end."""

import asyncio
from typing import Any, Final

PATIENCE_S: Final = 0.5


async def end(*tasks: asyncio.Future[Any]) -> None:
    """Cancel until they are done.

    One `cancel()` is not enough: `asyncio.wait_for` of Python 3.11 (CPython issue 86296) and nats-py's `publish`
    both swallow a cancellation that comes at the wrong moment, and the task would go on for ever.
    """
    while running := {task for task in tasks if not task.done()}:
        for task in running:
            task.cancel()
        await asyncio.wait(running, timeout=PATIENCE_S)
    for task in tasks:
        if not task.cancelled():
            # Retrieve it: whoever ends a task does not want to hear how it failed.
            task.exception()

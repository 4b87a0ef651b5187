"""Waiting in tests: poll with a deadline, never a bare sleep."""

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

STEP_S = 0.02


async def until(condition: Callable[[], T], *, within_s: float = 10.0, what: str = "") -> T:
    """The first truthy answer of `condition`; fails with what was awaited and the last answer."""
    deadline = time.monotonic() + within_s
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s:g} s: {what or condition} (last answer: {answer!r})")
        await asyncio.sleep(STEP_S)
    return answer


def wait_until(condition: Callable[[], T], *, within_s: float = 10.0, what: str = "") -> T:
    """`until` for tests without an event loop."""
    deadline = time.monotonic() + within_s
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s:g} s: {what or condition} (last answer: {answer!r})")
        time.sleep(STEP_S)
    return answer

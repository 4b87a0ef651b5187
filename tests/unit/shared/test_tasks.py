"""Ending tasks that do not want to end."""

import asyncio
import contextlib

import pytest

from llamaherd_shared import tasks


def test_a_task_that_swallows_cancellations_ends_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "PATIENCE_S", 0.001)
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        while swallowed < 3:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            swallowed += 1
        await asyncio.Event().wait()

    async def body() -> None:
        task = asyncio.create_task(stubborn())
        await asyncio.sleep(0)

        await asyncio.wait_for(tasks.end(task), 5)

        assert task.cancelled()

    asyncio.run(body())
    assert swallowed == 3


def test_how_a_task_failed_is_nobodys_business_once_it_is_ended() -> None:
    async def fail() -> None:
        raise ValueError("unseen")

    async def body() -> None:
        task = asyncio.create_task(fail())
        await asyncio.sleep(0)

        await tasks.end(task)

        assert task.done()

    asyncio.run(body())


def test_ending_nothing_is_nothing() -> None:
    asyncio.run(tasks.end())

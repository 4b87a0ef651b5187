"""What holds an event loop is told, with its place."""

import asyncio
import time
from typing import Any

from harness.deadline import until
from llamaherd_shared.loop_watch import watch_loop
from llamaherd_shared.tasks import end

Said = list[tuple[str, dict[str, Any]]]


class Log:
    def __init__(self) -> None:
        self.said: Said = []

    def warning(self, event: str, **told: Any) -> None:
        self.said.append((event, told))

    info = warning


def hold_the_loop(seconds: float) -> None:
    time.sleep(seconds)


def test_what_holds_the_loop_for_longer_than_the_limit_is_told_with_its_place() -> None:
    async def body() -> Said:
        log = Log()
        watching = asyncio.create_task(watch_loop(log, limit_s=0.1))
        await asyncio.sleep(0)
        hold_the_loop(0.3)
        await until(lambda: log.said, what="it was told")
        await end(watching)
        return log.said

    (event, held), (_, longest) = asyncio.run(body())

    assert event == "the event loop was held"
    assert held["late_s"] >= held["held_s"] > 0.2
    assert "hold_the_loop" in held["by"]
    assert longest["held_s"] >= held["held_s"]

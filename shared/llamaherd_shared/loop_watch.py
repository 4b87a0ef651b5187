"""How long a service's event loop is held by one thing, for those who look for the cause: on with `loop_watch_s`.

While the loop is held nothing else of the service is served. Ticks from within the loop measure it; a thread looks
where the loop is while a tick is overdue. Time in which no processor was free for the service is told apart: on a busy
machine that is most of the delay, and no fault of the code.
"""

import asyncio
import contextlib
import os
import sys
import threading
import time
from types import FrameType
from typing import Any, Final

_TICK_S: Final = 0.01
_FRAMES: Final = 4
"""Told of the place that held the loop, innermost last."""
_THREADS: Final = "/proc/self/task"


async def watch_loop(log: Any, *, limit_s: float) -> None:
    """Log each hold of the running loop that is longer than this, and at the end the longest of all."""
    place = _Place(limit_s)
    threading.Thread(target=place.watch, name="loop-watch", daemon=True).start()
    longest_s = 0.0
    waited_s = _waited_for_processor_s()
    try:
        while True:
            place.due = time.monotonic() + _TICK_S
            await asyncio.sleep(_TICK_S)
            late_s = time.monotonic() - place.due
            before_s, waited_s = waited_s, _waited_for_processor_s()
            held_s = late_s - max(0.0, waited_s - before_s)
            longest_s = max(longest_s, held_s)
            if held_s > limit_s:
                log.warning("the event loop was held", held_s=round(held_s, 4), late_s=round(late_s, 4), by=place.found)
            place.found = ""
    finally:
        place.ended.set()
        log.info("longest hold of the event loop", held_s=round(longest_s, 4))


class _Place:
    """Where the loop's thread is while a tick is overdue."""

    def __init__(self, limit_s: float) -> None:
        self.due = time.monotonic()
        self.found = ""
        """Of the present hold; empty when the thread could not look before it was over."""
        self.ended = threading.Event()
        self._limit_s = limit_s
        self._loop_thread = threading.get_ident()

    def watch(self) -> None:
        while not self.ended.wait(self._limit_s / 4):
            if not self.found and time.monotonic() > self.due + self._limit_s / 2:
                self.found = _describe(sys._current_frames().get(self._loop_thread))


def _describe(frame: FrameType | None) -> str:
    steps: list[str] = []
    while frame is not None and len(steps) < _FRAMES:
        code = frame.f_code
        steps.insert(0, f"{code.co_filename.rpartition('/')[2]}:{frame.f_lineno} {code.co_name}")
        frame = frame.f_back
    return " > ".join(steps)


def _waited_for_processor_s() -> float:
    """How long threads of this process were ready to run and did not; 0 where the kernel does not tell.

    Of all of them: while one waits that holds the interpreter's lock, the loop's thread has nothing to wait for.
    """
    # https://docs.kernel.org/scheduler/sched-stats.html: time on the processor, time on a run queue, slices.
    waited_ns = 0
    for thread in _threads():
        with contextlib.suppress(OSError, ValueError, IndexError), open(f"{_THREADS}/{thread}/schedstat", "rb") as file:
            waited_ns += int(file.read().split()[1])
    return waited_ns / 1e9


def _threads() -> list[str]:
    try:
        return os.listdir(_THREADS)
    except OSError:
        return []

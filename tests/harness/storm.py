"""Many instances on one node that start, crash together and come back, and what that did to the supervisor's loop."""

import asyncio
import os
import re
import signal
import time
from dataclasses import dataclass

from harness.deadline import until
from harness.supervisor import Herd
from llamaherd_supervisor.lifecycle import State

_HELD = re.compile(r"the event loop was held held_s=(\S+) late_s=(\S+) by=(.*)")
_IMPORTED = re.compile(r"^import time: .*\| *(\S+)$", re.MULTILINE)
_LONGEST = re.compile(r"longest hold of the event loop held_s=(\S+)")


@dataclass(frozen=True)
class Hold:
    """One hold of the event loop that was longer than `loop_watch_s`."""

    held_s: float
    late_s: float
    """With the time in which the machine had no processor for it."""
    by: str


def holds(output: str) -> list[Hold]:
    """What a service with `loop_watch_s` said in its log."""
    return [Hold(float(held), float(late), by) for held, late, by in _HELD.findall(output)]


def longest_hold_s(output: str) -> float:
    """Of all, as said at its end. Fails when nobody watched."""
    return max(float(held) for held in _LONGEST.findall(output))


def imports_while_serving(output: str) -> list[str]:
    """Modules that a supervisor with `PYTHONPROFILEIMPORTTIME` imported once it had all that it begins with.

    Without the binding of NVIDIA's driver, which is imported by a thread where there is a GPU.
    """
    imported = _IMPORTED.findall(output)
    begun = imported.index("llamaherd_supervisor.app")
    return [name for name in imported[begun + 1 :] if name != "pynvml"]


async def load_all(herd: Herd, names: list[str], *, within_s: float) -> float:
    """Load them at once; returns how long it took until all were ready."""
    began = time.perf_counter()
    await asyncio.gather(*(herd.load(name) for name in names))
    await _ready(herd, names, generation=1, within_s=within_s)
    return time.perf_counter() - began


async def crash_all(herd: Herd, names: list[str], *, within_s: float) -> float:
    """kill -9 all of them at once; returns how long it took until all were ready again."""
    began = time.perf_counter()
    for name in names:
        pid = herd.instance(name).pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    await _ready(herd, names, generation=2, within_s=within_s)
    return time.perf_counter() - began


async def _ready(herd: Herd, names: list[str], *, generation: int, within_s: float) -> None:
    def late() -> list[str]:
        found = [herd.instance(name) for name in names]
        return [each.model for each in found if each.state is not State.READY or each.generation != generation]

    try:
        await until(lambda: not late(), within_s=within_s, what=f"all are ready in generation {generation}")
    except AssertionError as error:
        told = {name: herd.kinds(name) for name in late()}
        raise AssertionError(f"{error}: {told}\n{herd.node.output[-4000:]}") from None

"""What may be seen of an instance and its process, or done to it: what `lifecycle.observe` turns into facts. Pure."""

from collections.abc import Mapping
from typing import Any

import msgspec

from llamaherd_supervisor.faults import Fault


class Spawned(msgspec.Struct, frozen=True, kw_only=True):
    pid: int
    process_started_s: float
    host: str
    port: int
    path: str
    options: Mapping[str, Any] = {}
    """What llama-server was told (`InstanceStarted.options`)."""
    router_generation: int = 0
    generation: int | None = None
    """Of a process that an earlier supervisor spawned and had no time to tell of; `None`: the next one."""


class SpawnFailed(msgspec.Struct, frozen=True):
    reason: str


class MemoryAwaited(msgspec.Struct, frozen=True):
    """The memory it needs is not free yet."""

    reason: str


class MemoryRefused(msgspec.Struct, frozen=True):
    """The memory it needs will not be free."""

    reason: str


class MemoryMeasured(msgspec.Struct, frozen=True, kw_only=True):
    """What the process uses; the fields are those of `InstanceMeasured`."""

    generation: int
    uses: Mapping[str, int]
    estimated: Mapping[str, int]
    needs: Mapping[str, int]
    plan: str


class LoadProgressed(msgspec.Struct, frozen=True):
    generation: int
    stage: str
    ratio: float


class LoadStood(msgspec.Struct, frozen=True):
    """For how long nothing of the load has moved; 0: it goes on."""

    generation: int
    for_s: float


class HealthAnswered(msgspec.Struct, frozen=True):
    """`GET /health` answered 200; the first time with what `GET /props` says."""

    generation: int
    slots: int = 0
    context_tokens: int = 0


class HealthMissed(msgspec.Struct, frozen=True):
    """`GET /health` of a ready instance did not answer 200 in time."""

    generation: int


class AnswersStood(msgspec.Struct, frozen=True):
    """For how long nothing of what a ready instance works on has moved; 0: it goes on, or has nothing to do."""

    generation: int
    for_s: float


class SlotsCounted(msgspec.Struct, frozen=True):
    generation: int
    busy: int
    stalled: bool = False
    """Nothing of what they work on has moved for `Limits.answer_stall_s`."""


class DrainBegan(msgspec.Struct, frozen=True):
    cause: str


class Signalled(msgspec.Struct, frozen=True):
    """SIGTERM (`kill` false) or SIGKILL was sent."""

    cause: str
    kill: bool


class ProcessExited(msgspec.Struct, frozen=True, kw_only=True):
    generation: int
    exit_code: int | None = None
    signal: str | None = None
    """Both `None`: only the supervisor that spawned it could have known."""
    last_lines: tuple[str, ...] = ()
    fault: Fault | None = None
    """What its last lines and its end tell; `None`: nothing."""
    lost: bool = False
    """It ended while no supervisor watched, or could not be adopted by this one."""


class Forgotten(msgspec.Struct, frozen=True):
    """No further start will be tried, as asked."""

    cause: str


class Reset(msgspec.Struct, frozen=True):
    """Somebody has mended what made it crash, or wants another try."""


Observation = (
    Spawned
    | SpawnFailed
    | MemoryAwaited
    | MemoryRefused
    | MemoryMeasured
    | LoadProgressed
    | LoadStood
    | HealthAnswered
    | HealthMissed
    | AnswersStood
    | SlotsCounted
    | DrainBegan
    | Signalled
    | ProcessExited
    | Forgotten
    | Reset
)

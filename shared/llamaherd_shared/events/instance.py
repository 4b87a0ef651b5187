"""Facts about one llama-server process. Written by: supervisor. Read by: gateway, metrics, ui."""

from typing import Any

import msgspec


class InstanceBase(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """Fields every instance event carries. (node, model, index) names the instance."""

    node: str
    model: str
    index: int = 0
    """Which replica of the model on this node, from 0."""
    at_ns: int
    """Wall-clock time of the fact, Unix nanoseconds, from the writer's clock."""


class InstanceStarted(InstanceBase, frozen=True, kw_only=True, tag="instance.started.v1"):
    """The process was spawned; the model is not loaded yet."""

    pid: int
    process_started_s: float
    """The kernel's start time of the process (`psutil.Process.create_time`): with `pid` it is unique."""
    host: str
    port: int
    """Where llama-server will listen."""
    generation: int
    """Counts the spawns of this instance from 1; part of its API key (`upstream_key.py`)."""
    restarts: int = 0
    """Crashes in a row before this spawn."""
    path: str = ""
    """The model file that is being loaded."""
    options: dict[str, Any] = {}
    """What llama-server was told, by the names of `models` in llamaherd.yaml; the rest it decides itself."""
    router_generation: int = 0
    """Of the node's router, when that serves it: host, port and API key are the router's. 0: it serves itself."""


class InstanceProgressed(InstanceBase, frozen=True, kw_only=True, tag="instance.progressed.v1"):
    """Loading went on. Written at most four times a second, and every ten seconds while anything moves at all."""

    stage: str
    """`spawn`, `metadata`, `weights`, `context` or `warm-up`."""
    ratio: float
    """0 to 1 over all stages."""
    ready_at_ns: int | None = None
    """When it is expected to be ready, by how the last load of this file went; `None` without one."""


class InstanceReady(InstanceBase, frozen=True, kw_only=True, tag="instance.ready.v1"):
    """`GET /health` answered 200 for the first time since the spawn."""

    load_s: float
    """Seconds from spawn to ready."""
    slots: int
    """Parallel sequences (`GET /props`: total_slots)."""
    context_tokens: int
    """Context of one slot (`GET /props`: default_generation_settings.n_ctx)."""


class InstanceWaiting(InstanceBase, frozen=True, kw_only=True, tag="instance.waiting.v1"):
    """It is to be loaded, and its memory is not free yet."""

    reason: str
    """What it waits for, as the end of a sentence: `a, which is at work`."""


class InstanceMeasured(InstanceBase, frozen=True, kw_only=True, tag="instance.measured.v1"):
    """What it uses of the node's memory: once it is ready, and again when that has grown by a tenth."""

    uses: dict[str, int]
    """Bytes by device: `ram` (resident memory, mapped weights included), `gpu0`, ..."""
    estimated: dict[str, int] = {}
    """What it was taken to need before it was loaded."""
    needs: dict[str, int] = {}
    """What its next load with the same plan is taken to need."""
    plan: str = ""
    """Names file and options that this is true for."""


class InstanceDraining(InstanceBase, frozen=True, kw_only=True, tag="instance.draining.v1"):
    """No new work; what is in flight finishes."""

    cause: str
    """Who wanted it: `unload`, `shutdown`, `evicted for MODEL` (which needs the memory), `cancelled` (nobody waits for
    the load any more), `reload` (it starts again with other options), `idle` (one more than there have to
    be), `drained` (the node is, for maintenance)."""


class InstanceStopping(InstanceBase, frozen=True, kw_only=True, tag="instance.stopping.v1"):
    """SIGTERM was sent; SIGKILL follows after the stop time-out."""

    cause: str


class InstanceExited(InstanceBase, frozen=True, kw_only=True, tag="instance.exited.v1"):
    """The process is gone, whether we asked for it or not."""

    exit_code: int | None = None
    """`None` when a signal ended it or when nobody could wait for it."""
    signal: str | None = None
    """Name of the signal that ended it, e.g. `SIGKILL`."""
    cause: str
    """`unload`, `shutdown`, `evicted for MODEL`, `cancelled`, `reload`, `idle`, `drained`, `crash`,
    `unhealthy`, `supervisor_lost`, or `reset`: there was no process any more, and what had ended it is forgotten."""
    last_lines: list[str] = []
    """The end of its log, oldest first; empty when we asked for the exit."""
    restart_at_ns: int | None = None
    """When the next spawn is due; `None` when none is."""
    fault: str = ""
    """What kind of trouble ended it, e.g. `out_of_memory` (docs/faults.md); empty when nothing tells, or when we asked
    for the exit."""
    reason: str = ""
    """The same in one sentence a person can act on."""


class InstanceFailed(InstanceBase, frozen=True, kw_only=True, tag="instance.failed.v1"):
    """Given up: a command is needed to try again."""

    reason: str
    """One sentence a person can act on."""
    last_lines: list[str] = []
    fault: str = ""
    """As in `InstanceExited`."""


InstanceEvent = (
    InstanceStarted
    | InstanceProgressed
    | InstanceReady
    | InstanceMeasured
    | InstanceWaiting
    | InstanceDraining
    | InstanceStopping
    | InstanceExited
    | InstanceFailed
)

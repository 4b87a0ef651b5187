"""What routing needs to know of the herd: nodes, model files and instances, folded from `ev.>`.

Every function here folds what has happened and therefore never raises. `store.py` keeps the same rows in SQLite.
"""

from typing import Any, Final, Literal, TypeVar

import msgspec

from llamaherd_gateway.access.keys import Keyring, evolve_keys
from llamaherd_shared.events.access import AccessBase
from llamaherd_shared.events.alias import AliasBase, AliasSet
from llamaherd_shared.events.instance import (
    InstanceBase,
    InstanceDraining,
    InstanceExited,
    InstanceFailed,
    InstanceProgressed,
    InstanceReady,
    InstanceStarted,
    InstanceStopping,
    InstanceWaiting,
)
from llamaherd_shared.events.model import ModelBase, ModelFound, ModelRejected, ModelRemoved
from llamaherd_shared.events.node import NodeBase, NodeDrained, NodeJoined, NodeLeft
from llamaherd_shared.events.pull import PullBase, PullFailed, PullFinished, PullProgressed, PullStarted

K = TypeVar("K")
V = TypeVar("V")

PULLS_KEPT: Final = 200
"""Downloads that clients may still ask about; the oldest are forgotten."""

State = Literal["stopped", "waiting", "loading", "ready", "draining", "stopping", "backoff", "failed"]
InstanceKey = tuple[str, str, int]
"""(node, model, index)"""
Spawn = tuple[InstanceKey, int]
"""(instance, generation): one process."""
ModelKey = tuple[str, str]
"""(node, model)"""


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A host with a supervisor."""

    node: str
    joined: bool
    draining: bool = False
    """For maintenance: it takes no loads."""


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model file on one node."""

    node: str
    model: str
    modified_ns: int = 0
    """Of the file; 0 when it was rejected."""
    size_bytes: int = 0
    projector_bytes: int = 0
    """Of the file that lets it see or hear, which may have come with it; 0 without one."""
    title: str = ""
    architecture: str = ""
    parameters: int = 0
    context_tokens: int = 0
    """Training context."""
    quantization: str = ""
    capabilities: tuple[str, ...] = ()
    rejected: str | None = None
    """Why the file cannot be served; `None` when it can."""
    retry_after_s: float | None = None
    """When it may be, if it is only on its way."""


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """One llama-server, as its supervisor last described it."""

    node: str
    model: str
    index: int = 0
    state: State = "stopped"
    host: str = ""
    port: int = 0
    generation: int = 0
    """Counts the spawns; part of the API key."""
    router_generation: int = 0
    """Of the router that serves it; 0: it serves itself."""
    slots: int = 0
    context_tokens: int = 0
    """Of one slot; 0 until it is ready."""
    options: dict[str, Any] = {}
    """What its llama-server was told, by the names of `models` in llamaherd.yaml."""
    awaits: str = ""
    """What its load waits for, before it begins."""
    stage: str = ""
    """Of the load under way."""
    ratio: float = 0.0
    was_ready: bool = False
    """Whether this spawn has ever been ready: an exit before that is a failed load."""
    cause: str = ""
    """Of the last exit."""
    ended_by: str = ""
    """The same, and still known when it runs again."""
    ended_generation: int = 0
    """Of the process that ended last."""
    signal: str | None = None
    """That ended the last spawn."""
    exit_code: int | None = None
    fault: str = ""
    """What kind of trouble that was (docs/faults.md); empty when nobody knows."""
    reason: str = ""
    """Why it ended or failed for good, in one sentence."""
    last_lines: tuple[str, ...] = ()
    """The end of its log, from the last exit or failure."""
    restart_at_ns: int | None = None
    sequence: int = 0
    """Of the last event about it."""

    @property
    def key(self) -> InstanceKey:
        return (self.node, self.model, self.index)

    @property
    def spawn(self) -> Spawn:
        """This process of it, and no later one."""
        return (self.key, self.generation)

    @property
    def name(self) -> str:
        return f"{self.node}/{self.model}/{self.index}"


class Alias(msgspec.Struct, frozen=True, kw_only=True):
    """Another name for a model, made by a client."""

    alias: str
    model: str
    system: str = ""
    options: dict[str, Any] = {}
    messages: list[dict[str, str]] = []
    came_with_model: bool = False
    at_ns: int = 0
    sequence: int = 0
    """Of its last event."""


class Pull(msgspec.Struct, frozen=True, kw_only=True):
    """One download of a model."""

    pull: str
    node: str
    model: str
    state: Literal["running", "finished", "failed"] = "running"
    done_bytes: int = 0
    total_bytes: int = 0
    """0: not known yet."""
    bytes_per_s: float | None = None
    """Between the last two events about it."""
    sha256: str = ""
    """Of the file that is being fetched; empty: not known."""
    reason: str = ""
    """Why it failed."""
    kind: str = ""
    """Of the failure (`errors.KINDS`), as far as it was told."""
    started_ns: int = 0
    at_ns: int = 0
    """Of its last event."""


class Fleet(msgspec.Struct, frozen=True):
    """The herd at one moment."""

    nodes: dict[str, Node] = {}
    models: dict[ModelKey, Model] = {}
    instances: dict[InstanceKey, Instance] = {}
    aliases: dict[str, Alias] = {}
    pulls: dict[str, Pull] = {}
    keyring: Keyring = Keyring()


def evolve(fleet: Fleet, event: Any, sequence: int) -> Fleet:
    """The herd after one more fact. Facts of other kinds change nothing."""
    change = msgspec.structs.replace
    match event:
        case InstanceBase():
            instance = evolve_instance(fleet.instances.get((event.node, event.model, event.index)), event, sequence)
            return change(fleet, instances={**fleet.instances, instance.key: instance})
        case ModelBase():
            return change(fleet, models=_with(fleet.models, (event.node, event.model), evolve_model(event)))
        case NodeBase():
            return change(fleet, nodes={**fleet.nodes, event.node: evolve_node(event)})
        case AliasBase():
            return change(fleet, aliases=_with(fleet.aliases, event.alias, evolve_alias(event, sequence)))
        case PullBase():
            pulls = {**fleet.pulls, event.pull: evolve_pull(fleet.pulls.get(event.pull), event)}
            while len(pulls) > PULLS_KEPT:
                del pulls[next(iter(pulls))]
            return change(fleet, pulls=pulls)
        case AccessBase():
            return change(fleet, keyring=evolve_keys(fleet.keyring, event))
    return fleet


def _with(rows: dict[K, V], key: K, value: V | None) -> dict[K, V]:
    """A copy with one row put in, or taken out when there is no value."""
    rows = {known: row for known, row in rows.items() if known != key}
    if value is not None:
        rows[key] = value
    return rows


def evolve_alias(event: AliasBase, sequence: int) -> Alias | None:
    """`None` when it means nothing any more."""
    if not isinstance(event, AliasSet):
        return None
    return Alias(
        alias=event.alias,
        model=event.model,
        system=event.system,
        options=event.options,
        messages=event.messages,
        came_with_model=event.came_with_model,
        at_ns=event.at_ns,
        sequence=sequence,
    )


def evolve_pull(pull: Pull | None, event: PullBase) -> Pull:
    """The download after one more fact; `None` before its first."""
    if pull is None:
        pull = Pull(pull=event.pull, node=event.node, model=event.model, started_ns=event.at_ns)
    passed_s = (event.at_ns - pull.at_ns) / 1e9 if pull.at_ns else 0.0
    changes: dict[str, Any] = {"at_ns": event.at_ns}
    match event:
        case PullStarted():
            changes |= {"state": "running", "done_bytes": event.done_bytes, "total_bytes": event.total_bytes}
            changes |= {"sha256": event.files[0].sha256 if event.files else ""}
        case PullProgressed():
            changes |= {"done_bytes": event.done_bytes, "total_bytes": event.total_bytes}
            if passed_s > 0:
                changes |= {"bytes_per_s": max(0.0, (event.done_bytes - pull.done_bytes) / passed_s)}
        case PullFinished():
            changes |= {"state": "finished", "done_bytes": event.size_bytes, "total_bytes": event.size_bytes}
            changes |= {"sha256": event.sha256}
        case PullFailed():
            changes |= {"state": "failed", "reason": event.reason, "kind": event.kind, "done_bytes": event.done_bytes}
    return msgspec.structs.replace(pull, **changes)


def evolve_node(event: NodeBase) -> Node:
    """Every fact about a node but its last one leaves it joined."""
    draining = isinstance(event, NodeDrained) or (isinstance(event, NodeJoined) and event.drained)
    return Node(node=event.node, joined=not isinstance(event, NodeLeft), draining=draining)


def evolve_model(event: ModelBase) -> Model | None:
    """`None` when the file is gone."""
    match event:
        case ModelRemoved():
            return None
        case ModelFound():
            return Model(
                node=event.node,
                model=event.model,
                modified_ns=event.modified_ns,
                size_bytes=event.size_bytes,
                projector_bytes=event.projector_bytes,
                title=event.title,
                architecture=event.architecture,
                parameters=event.parameters,
                context_tokens=event.context_tokens,
                quantization=event.quantization,
                capabilities=_capabilities(event),
            )
        case ModelRejected():
            return Model(node=event.node, model=event.model, rejected=event.reason, retry_after_s=event.retry_after_s)
    return Model(node=event.node, model=event.model)


def _capabilities(event: ModelFound) -> tuple[str, ...]:
    """Supervisors of the first version said less: what can be told from that."""
    return tuple(event.capabilities) or (("embedding",) if event.embedding else ("completion",))


def evolve_instance(instance: Instance | None, event: InstanceBase, sequence: int) -> Instance:
    """The instance after one more fact; `None` before its first."""
    if instance is None:
        instance = Instance(node=event.node, model=event.model, index=event.index)
    return msgspec.structs.replace(instance, sequence=sequence, **_changes(instance, event))


def _changes(instance: Instance, event: InstanceBase) -> dict[str, Any]:
    match event:
        case InstanceStarted():
            return {
                "state": "loading",
                "host": event.host,
                "port": event.port,
                "generation": event.generation,
                "router_generation": event.router_generation,
                "slots": 0,
                "context_tokens": 0,
                "options": event.options,
                "stage": "spawn",
                "ratio": 0.0,
                "was_ready": False,
                "restart_at_ns": None,
            }
        case InstanceWaiting():
            return {"state": "waiting", "awaits": event.reason, "restart_at_ns": None}
        case InstanceProgressed():
            return {"stage": event.stage, "ratio": event.ratio}
        case InstanceReady():
            # What was said about an earlier spawn's end is over.
            return {
                "state": "ready",
                "slots": event.slots,
                "context_tokens": event.context_tokens,
                "was_ready": True,
                "cause": "",
                "signal": None,
                "exit_code": None,
                "fault": "",
                "reason": "",
                "last_lines": (),
            }
        case InstanceDraining():
            return {"state": "draining", "cause": event.cause}
        case InstanceStopping():
            return {"state": "stopping", "cause": event.cause}
        case InstanceExited():
            return {
                "state": "stopped" if event.restart_at_ns is None else "backoff",
                "cause": event.cause,
                "ended_by": event.cause,
                "ended_generation": instance.generation,
                "signal": event.signal,
                "exit_code": event.exit_code,
                "fault": event.fault,
                "reason": event.reason,
                "last_lines": tuple(event.last_lines) or instance.last_lines,
                "restart_at_ns": event.restart_at_ns,
            }
        case InstanceFailed():
            return {
                "state": "failed",
                "fault": event.fault,
                "reason": event.reason,
                "last_lines": tuple(event.last_lines) or instance.last_lines,
                "restart_at_ns": None,
            }
    return {}

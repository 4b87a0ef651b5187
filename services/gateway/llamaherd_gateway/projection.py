"""What routing needs to know of the herd: nodes, model files and instances, folded from `ev.>`.

Every function here folds what has happened and therefore never raises. `store.py` keeps the same rows in SQLite.
"""

from typing import Any, Literal

import msgspec

from llamaherd_shared.events.instance import (
    InstanceBase,
    InstanceDraining,
    InstanceExited,
    InstanceFailed,
    InstanceProgressed,
    InstanceReady,
    InstanceStarted,
    InstanceStopping,
)
from llamaherd_shared.events.model import ModelBase, ModelFound, ModelRejected, ModelRemoved
from llamaherd_shared.events.node import NodeBase, NodeJoined

State = Literal["stopped", "loading", "ready", "draining", "stopping", "backoff", "failed"]
InstanceKey = tuple[str, str, int]
"""(node, model, index)"""
ModelKey = tuple[str, str]
"""(node, model)"""


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A host with a supervisor."""

    node: str
    joined: bool


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model file on one node."""

    node: str
    model: str
    modified_ns: int = 0
    """Of the file; 0 when it was rejected."""
    size_bytes: int = 0
    title: str = ""
    architecture: str = ""
    parameters: int = 0
    context_tokens: int = 0
    """Training context."""
    quantization: str = ""
    capabilities: tuple[str, ...] = ()
    rejected: str | None = None
    """Why the file cannot be served; `None` when it can."""


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
    slots: int = 0
    context_tokens: int = 0
    """Of one slot; 0 until it is ready."""
    stage: str = ""
    """Of the load under way."""
    ratio: float = 0.0
    was_ready: bool = False
    """Whether this spawn has ever been ready: an exit before that is a failed load."""
    cause: str = ""
    """Of the last exit."""
    signal: str | None = None
    """That ended the last spawn."""
    exit_code: int | None = None
    reason: str = ""
    """Why it failed for good."""
    last_lines: tuple[str, ...] = ()
    """The end of its log, from the last exit or failure."""
    restart_at_ns: int | None = None
    sequence: int = 0
    """Of the last event about it."""

    @property
    def key(self) -> InstanceKey:
        return (self.node, self.model, self.index)

    @property
    def name(self) -> str:
        return f"{self.node}/{self.model}/{self.index}"


class Fleet(msgspec.Struct, frozen=True):
    """The herd at one moment."""

    nodes: dict[str, Node] = {}
    models: dict[ModelKey, Model] = {}
    instances: dict[InstanceKey, Instance] = {}


def evolve(fleet: Fleet, event: Any, sequence: int) -> Fleet:
    """The herd after one more fact. Facts of other kinds change nothing."""
    match event:
        case InstanceBase():
            instance = evolve_instance(fleet.instances.get((event.node, event.model, event.index)), event, sequence)
            return Fleet(fleet.nodes, fleet.models, {**fleet.instances, instance.key: instance})
        case ModelBase():
            models = dict(fleet.models)
            model = evolve_model(event)
            if model is None:
                models.pop((event.node, event.model), None)
            else:
                models[event.node, event.model] = model
            return Fleet(fleet.nodes, models, fleet.instances)
        case NodeBase():
            return Fleet({**fleet.nodes, event.node: evolve_node(event)}, fleet.models, fleet.instances)
    return fleet


def evolve_node(event: NodeBase) -> Node:
    return Node(node=event.node, joined=isinstance(event, NodeJoined))


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
                title=event.title,
                architecture=event.architecture,
                parameters=event.parameters,
                context_tokens=event.context_tokens,
                quantization=event.quantization,
                capabilities=_capabilities(event),
            )
        case ModelRejected():
            return Model(node=event.node, model=event.model, rejected=event.reason)
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
                "slots": 0,
                "context_tokens": 0,
                "stage": "spawn",
                "ratio": 0.0,
                "was_ready": False,
                "restart_at_ns": None,
            }
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
                "signal": event.signal,
                "exit_code": event.exit_code,
                "last_lines": tuple(event.last_lines) or instance.last_lines,
                "restart_at_ns": event.restart_at_ns,
            }
        case InstanceFailed():
            return {
                "state": "failed",
                "reason": event.reason,
                "last_lines": tuple(event.last_lines) or instance.last_lines,
                "restart_at_ns": None,
            }
    return {}

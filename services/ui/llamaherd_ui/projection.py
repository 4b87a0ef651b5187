"""What the pages show of the fleet, folded from `ev.>`, one entity at a time.

Each entity stands alone: `entity_key` says which one a fact is about, `evolve` gives its next state.
So the store folds a batch by reading and writing only the rows it touches.
"""

from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec

from llamaherd_shared.errors import NotFound
from llamaherd_shared.events import Event
from llamaherd_shared.events.access import AccessBase, KeyCreated, KeyLimits, KeyRevoked
from llamaherd_shared.events.instance import (
    InstanceBase,
    InstanceDraining,
    InstanceExited,
    InstanceFailed,
    InstanceMeasured,
    InstanceProgressed,
    InstanceReady,
    InstanceStarted,
    InstanceStopping,
    InstanceWaiting,
)
from llamaherd_shared.events.model import ModelBase, ModelFound, ModelRejected, ModelRemoved
from llamaherd_shared.events.node import NodeBase, NodeDrained, NodeJoined, NodeLeft, NodeResumed

S = TypeVar("S", bound=msgspec.Struct)


class Node(msgspec.Struct, frozen=True, kw_only=True, tag="node"):
    """A host that runs, or ran, a supervisor."""

    node: str
    version: str
    cpus: int
    memory_bytes: int
    models_dir: str
    llama_server: str
    """Path; empty when the node has none."""
    joined_ns: int
    left_ns: int | None = None
    """When its supervisor stopped; `None` while it runs."""
    drained: bool = False
    """For maintenance: it takes no loads."""


class ModelFile(msgspec.Struct, frozen=True, kw_only=True, tag="model"):
    """A GGUF file in a node's models folder. The fields are those of `ModelFound`."""

    node: str
    model: str
    path: str
    title: str = ""
    architecture: str = ""
    parameters: int = 0
    size_bytes: int = 0
    context_tokens: int = 0
    quantization: str = ""
    chat: bool = False
    capabilities: list[str] = []
    projector: str = ""
    rejected: str | None = None
    """Why it cannot be served; `None` when it can."""


class InstanceState(msgspec.Struct, frozen=True, kw_only=True, tag="instance"):
    """One llama-server as its facts tell."""

    node: str
    model: str
    index: int = 0
    state: str = "stopped"
    """`stopped`, `loading`, `ready`, `draining`, `stopping`, `backoff` or `failed`."""
    since_ns: int = 0
    """When it entered the state."""
    pid: int | None = None
    """`None` without a process."""
    host: str = ""
    port: int = 0
    generation: int = 0
    path: str = ""
    stage: str | None = None
    """Only while loading."""
    ratio: float | None = None
    """0 to 1 over all stages; only while loading."""
    ready_at_ns: int | None = None
    """When it is expected to be ready; only while loading, and when an earlier load tells."""
    load_s: float | None = None
    """`None` before the first time it was ready."""
    slots: int = 0
    context_tokens: int = 0
    options: dict[str, Any] = {}
    """What llama-server was told, by the names of `models` in llamaherd.yaml."""
    restarts: int = 0
    restart_at_ns: int | None = None
    """When the next spawn is due; only in `backoff`."""
    cause: str = ""
    """Of the last exit, as in `InstanceExited`; empty before it and once it was started again."""
    fault: str = ""
    """What kind of trouble that was (docs/faults.md); empty when none is known."""
    reason: str | None = None
    """Why it is where it is, when it did not go there as asked."""
    waits_for: str | None = None
    """What keeps its load from beginning, when that is memory."""
    uses: dict[str, int] = {}
    """Bytes of the node's memory by device (`ram`, `gpu0`, ...), as last measured."""
    last_lines: list[str] = []


class AccessKey(msgspec.Struct, frozen=True, kw_only=True, tag="key"):
    """An API key. The fields are those of `KeyCreated`, without the hash."""

    key: str
    """Its id."""
    name: str
    prefix: str
    models: list[str]
    dialects: list[str]
    created_ns: int
    expires_ns: int | None
    """`None`: never."""
    revoked_ns: int | None = None
    limits: KeyLimits


Entity = Node | ModelFile | InstanceState | AccessKey
Entities = Mapping[str, Entity]
"""The whole fleet: entities by key."""

_NOT_LOADING: Final[Mapping[str, None]] = {"stage": None, "ratio": None, "ready_at_ns": None}
_UNASKED: Final = frozenset({"crash", "unhealthy", "supervisor_lost"})
"""Causes of an exit that needs an explanation; of any other one somebody said that it should be."""


def entity_key(event: Event) -> str | None:
    """Which entity a fact is about; `None` for facts the fleet does not show."""
    match event:
        case InstanceBase():
            return f"instance/{event.node}/{event.model}/{event.index}"
        case ModelBase():
            return f"model/{event.node}/{event.model}"
        case NodeBase():
            return f"node/{event.node}"
        case AccessBase():
            return f"key/{event.key}"
        case _:
            return None


def evolve(entity: Entity | None, event: Event) -> Entity | None:
    """The entity's next state; `None`: it does not exist. Never raises, whatever the order of facts."""
    match event:
        case NodeBase():
            return _evolve_node(entity if isinstance(entity, Node) else None, event)
        case ModelBase():
            return _evolve_model(entity if isinstance(entity, ModelFile) else None, event)
        case AccessBase():
            return _evolve_key(entity if isinstance(entity, AccessKey) else None, event)
        case InstanceBase():
            known = entity if isinstance(entity, InstanceState) else None
            before = known or InstanceState(node=event.node, model=event.model, index=event.index)
            return _evolve_instance(before, event)
        case _:
            return entity


def _evolve_node(node: Node | None, event: NodeBase) -> Node | None:
    match event:
        case NodeJoined():
            return Node(
                node=event.node,
                version=event.version,
                cpus=event.cpus,
                memory_bytes=event.memory_bytes,
                models_dir=event.models_dir,
                llama_server=event.llama_server,
                joined_ns=event.at_ns,
                drained=event.drained,
            )
        case NodeLeft() if node is not None:
            return msgspec.structs.replace(node, left_ns=event.at_ns)
        case NodeDrained() | NodeResumed() if node is not None:
            return msgspec.structs.replace(node, drained=isinstance(event, NodeDrained))
        case _:
            return node


def _evolve_model(model: ModelFile | None, event: ModelBase) -> ModelFile | None:
    match event:
        case ModelFound():
            return ModelFile(
                node=event.node,
                model=event.model,
                path=event.path,
                title=event.title,
                architecture=event.architecture,
                parameters=event.parameters,
                size_bytes=event.size_bytes,
                context_tokens=event.context_tokens,
                quantization=event.quantization,
                chat=event.chat,
                capabilities=event.capabilities,
                projector=event.projector,
            )
        case ModelRejected():
            return ModelFile(node=event.node, model=event.model, path=event.path, rejected=event.reason)
        case ModelRemoved():
            return None
        case _:
            return model


def _evolve_key(key: AccessKey | None, event: AccessBase) -> AccessKey | None:
    match event:
        case KeyCreated() if key is None or key.revoked_ns is None:
            return AccessKey(
                key=event.key,
                name=event.name,
                prefix=event.prefix,
                models=event.models,
                dialects=event.dialects,
                created_ns=event.at_ns,
                expires_ns=event.expires_ns,
                limits=event.limits,
            )
        case KeyRevoked() if key is not None and key.revoked_ns is None:
            return msgspec.structs.replace(key, revoked_ns=event.at_ns)
        case _:
            return key


def _evolve_instance(before: InstanceState, event: InstanceBase) -> InstanceState:
    at = event.at_ns
    match event:
        case InstanceStarted():
            return InstanceState(
                node=event.node,
                model=event.model,
                index=event.index,
                state="loading",
                since_ns=at,
                pid=event.pid,
                host=event.host,
                port=event.port,
                generation=event.generation,
                path=event.path,
                stage="spawn",
                ratio=0.0,
                load_s=before.load_s,
                options=event.options,
                restarts=event.restarts,
            )
        case InstanceWaiting():
            return msgspec.structs.replace(before, waits_for=event.reason)
        case InstanceMeasured():
            return msgspec.structs.replace(before, uses=event.uses)
        case InstanceProgressed() if before.state == "loading":
            return msgspec.structs.replace(before, stage=event.stage, ratio=event.ratio, ready_at_ns=event.ready_at_ns)
        case InstanceReady():
            return msgspec.structs.replace(
                before,
                state="ready",
                since_ns=at,
                **_NOT_LOADING,
                load_s=event.load_s,
                slots=event.slots,
                context_tokens=event.context_tokens,
            )
        case InstanceDraining():
            return msgspec.structs.replace(before, state="draining", since_ns=at, **_NOT_LOADING)
        case InstanceStopping():
            return msgspec.structs.replace(before, state="stopping", since_ns=at, **_NOT_LOADING)
        case InstanceExited():
            return msgspec.structs.replace(
                _without_process(before),
                state="stopped" if event.restart_at_ns is None else "backoff",
                since_ns=at,
                restart_at_ns=event.restart_at_ns,
                cause=event.cause,
                fault=event.fault,
                reason=describe_exit(event) if event.cause in _UNASKED else None,
                last_lines=event.last_lines,
            )
        case InstanceFailed():
            return msgspec.structs.replace(
                _without_process(before),
                state="failed",
                since_ns=at,
                fault=event.fault,
                reason=event.reason,
                last_lines=event.last_lines or before.last_lines,
            )
        case _:
            return before


def _without_process(instance: InstanceState) -> InstanceState:
    return msgspec.structs.replace(
        instance, pid=None, **_NOT_LOADING, restart_at_ns=None, slots=0, host="", port=0, waits_for=None, uses={}
    )


def describe_exit(event: InstanceExited) -> str:
    """One sentence on an exit nobody asked for."""
    if event.reason:
        return event.reason
    if event.cause == "supervisor_lost":
        return "the process was gone when the supervisor came back"
    if event.signal is not None:
        how = f"was ended by {event.signal}"
    elif event.exit_code is not None:
        how = f"exited with code {event.exit_code}"
    else:
        how = "ended (exit code unknown)"
    return f"llama-server {how}" if event.cause == "crash" else f"llama-server {how} ({event.cause})"


def select(entities: Entities, type_: type[S]) -> list[S]:
    """All entities of a type, in the order of their keys."""
    return [entity for _, entity in sorted(entities.items()) if isinstance(entity, type_)]


def pick_node(entities: Entities, model: str, *, node: str | None) -> str:
    """The node a load or unload goes to: where the model runs, else the first that has it.

    Raises `NotFound` with the names that would have worked.
    """
    files = [file for file in select(entities, ModelFile) if file.model == model]
    running = [item for item in select(entities, InstanceState) if item.model == model and item.pid is not None]
    gone = {host.node for host in select(entities, Node) if host.left_ns is not None or host.drained}
    places = [item.node for item in running] + [file.node for file in files]
    if node is not None and node not in places:
        raise NotFound(f"node {node} has no model {model}{_or_nodes(places)}")
    if not places:
        names = ", ".join(sorted({file.model for file in select(entities, ModelFile) if not file.rejected}))
        raise NotFound(f"no node has a model {model}; known are: {names or 'none'}")
    if node is not None:
        return node
    return next((place for place in places if place not in gone), places[0])


def known_node(entities: Entities, node: str) -> str:
    """The node of this name. Raises `NotFound` with those there are."""
    known = [host.node for host in select(entities, Node)]
    if node not in known:
        raise NotFound(f"there is no node {node}; known are: {', '.join(known) or 'none'}")
    return node


def _or_nodes(places: list[str]) -> str:
    return f"; it is on {', '.join(sorted(set(places)))}" if places else ""

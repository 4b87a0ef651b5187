"""What the API answers: JSON shapes and the pure functions that fill them. Their fields are the API."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

import msgspec

from llamaherd_shared.commands import StoredLine
from llamaherd_shared.events.access import KeyLimits
from llamaherd_shared.events.line import LinePack
from llamaherd_shared.events.presence import Presence
from llamaherd_shared.events.request import RequestFinished
from llamaherd_ui.projection import AccessKey, Entities, InstanceState, ModelFile, Node, select
from llamaherd_ui.resume import first_id


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """One llama-server of a model."""

    index: int
    state: str
    """`stopped`, `loading`, `ready`, `draining`, `stopping`, `backoff` or `failed`."""
    since_ns: int
    pid: int | None
    host: str
    port: int
    generation: int
    stage: str | None
    """What loading is at; `null` when it is not loading."""
    ratio: float | None
    """Progress of loading, 0 to 1."""
    ready_at_ns: int | None
    """When loading is expected to end, by how the last load went; `null` when nothing tells."""
    load_s: float | None
    slots: int
    context_tokens: int
    options: dict[str, Any]
    """What llama-server was told, by the names of `models` in llamaherd.yaml; the rest it decides itself."""
    restarts: int
    restart_at_ns: int | None
    cause: str
    """Why it ended last: `crash`, `unhealthy`, `supervisor_lost` are troubles, any other cause was somebody's will.
    Empty once it was started again."""
    fault: str
    """What kind of trouble ended it, e.g. `out_of_memory` (docs/faults.md); empty when none is known."""
    reason: str | None
    """One sentence on why it is where it is; `null` when somebody wanted it there."""
    waits_for: str | None
    """What keeps its load from beginning, e.g. `a, which is at work`, when that is memory."""
    uses: dict[str, int]
    """Bytes of the node's memory by device (`ram`, `gpu0`, ...), as last measured."""
    last_lines: list[str]


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model on a node, with its instance when it ever had one."""

    model: str
    node: str
    title: str
    architecture: str
    parameters: int
    size_bytes: int
    context_tokens: int
    quantization: str
    chat: bool
    capabilities: list[str]
    """Of `completion`, `embedding`, `rerank`, `tools`, `thinking`, `insert`, `vision`, `audio`."""
    path: str
    projector: str
    """Path of the file that lets it see or hear; empty without one."""
    rejected: str | None
    """Why the file cannot be served; `null` when it can."""
    instance: Instance | None
    replicas: list[Instance]
    """Its further instances on this node, by index, but those that are stopped."""


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """A service whose last beat is younger than 15 s."""

    node: str
    service: str
    version: str
    pid: int
    started_ns: int
    ready: bool
    note: str
    seen_ns: int
    """When this ui last heard of it, Unix nanoseconds; 0 in the message that says it is gone."""


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the overview page shows, at one moment."""

    at: dict[str, int]
    """Where the snapshot stands in each stream; of `HERD_REQUESTS` and `HERD_LOGS`, the newest id."""
    stream_id: str
    """Names the streams the sequences belong to."""
    resume: str
    """Pass it to `/api/v1/stream?after=` to go on from this snapshot."""
    gateway_url: str | None
    """Where clients send their requests, ending in `/v1`; `null` when the ui was not told."""
    nodes: list[Node]
    models: list[Model]
    services: list[Service]


class Request(RequestFinished, frozen=True, kw_only=True):
    """A request that was served, with its place in the stream."""

    id: int
    """Grows with time: (stream sequence << 10) + place in the pack."""


class Requests(msgspec.Struct, frozen=True, kw_only=True):
    requests: list[Request]
    """Newest first."""
    next: int | None
    """`before` of the next page; `null` on the last one."""


class Events(msgspec.Struct, frozen=True, kw_only=True):
    events: list[dict[str, Any]]
    """Oldest first: `sequence`, `at_ns`, `subject`, `type` and the fields of that type."""
    next: int | None
    """`after` of the next page; `null` when there is none yet."""


class KeyUse(msgspec.Struct, frozen=True, kw_only=True):
    """What an API key has used today and on the 29 days before (UTC)."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    last_used_ns: int | None = None
    """When the last of its requests ended, Unix nanoseconds; `null`: none did in these days."""


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """An API key, as far as it may be shown."""

    id: str
    name: str
    prefix: str
    """The beginning of the key: `llh_<id>`."""
    state: Literal["active", "expired", "revoked"]
    models: list[str]
    """Names and patterns; empty: all."""
    dialects: list[str]
    """Empty: all."""
    created_ns: int
    expires_ns: int | None
    """`null`: never."""
    revoked_ns: int | None
    limits: KeyLimits
    usage: KeyUse


class CreatedKey(ApiKey, frozen=True, kw_only=True):
    """The answer to the person who asked for a key."""

    key: str
    """The key itself. It is shown this once: only a hash of it is kept."""


class Health(msgspec.Struct, frozen=True, kw_only=True):
    ready: bool
    note: str = ""
    """Why it is not ready: one sentence."""


class ErrorDetail(msgspec.Struct, frozen=True, kw_only=True):
    message: str
    """One sentence: what, where, what to do."""
    kind: str
    """`rejected`, `not_found`, `unavailable`, `conflict`; `internal` for a bug, with the id in the log."""
    id: str


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """The body of every answer with a status from 400 on."""

    error: ErrorDetail


_INSTANCE_FIELDS: Final = Instance.__struct_fields__
_FINISHED_FIELDS: Final = RequestFinished.__struct_fields__
_FILE_FIELDS: Final = tuple(name for name in Model.__struct_fields__ if name not in ("instance", "replicas"))


def render_models(entities: Entities) -> list[Model]:
    """All models of all nodes, by name; one whose file is gone stays while a process serves it."""
    instances: defaultdict[tuple[str, str], list[InstanceState]] = defaultdict(list)
    for item in sorted(select(entities, InstanceState), key=lambda each: each.index):
        instances[item.node, item.model].append(item)
    files = {(file.node, file.model): file for file in select(entities, ModelFile)}
    for place, of_model in instances.items():
        running = next((instance for instance in of_model if instance.pid is not None), None)
        if place not in files and running is not None:
            files[place] = ModelFile(node=running.node, model=running.model, path=running.path)
    return [
        _render_model(file, instances.get(place, []))
        for place, file in sorted(files.items(), key=lambda item: (item[0][1], item[0][0]))
    ]


def _render_model(file: ModelFile, instances: list[InstanceState]) -> Model:
    own = {name: getattr(file, name) for name in _FILE_FIELDS}
    first = next((instance for instance in instances if instance.index == 0), None)
    return Model(
        **own,
        instance=render_instance(first) if first is not None else None,
        replicas=[render_instance(each) for each in instances if each.index and each.state != "stopped"],
    )


def render_instance(instance: InstanceState) -> Instance:
    return Instance(**{name: getattr(instance, name) for name in _INSTANCE_FIELDS})


def render_service(presence: Presence, *, seen_ns: int) -> Service:
    return Service(
        node=presence.node,
        service=presence.service,
        version=presence.version,
        pid=presence.pid,
        started_ns=presence.started_ns,
        ready=presence.ready,
        note=presence.note,
        seen_ns=seen_ns,
    )


def render_fact(sequence: int, at_ns: int, subject: str, data: bytes) -> dict[str, Any]:
    """One row of `/api/v1/events`. The fact's own `at_ns` (when it happened) wins over the stream's."""
    fact = msgspec.json.decode(data)
    own = fact if isinstance(fact, dict) else {}
    return {"sequence": sequence, "at_ns": at_ns, "subject": subject} | own


def render_request(id_: int, finished: RequestFinished) -> Request:
    own = {name: getattr(finished, name) for name in _FINISHED_FIELDS}
    return Request(id=id_, **own)


def render_api_key(key: AccessKey, usage: KeyUse, *, now_ns: int) -> ApiKey:
    return ApiKey(**_key_fields(key, usage, now_ns))


def render_created(key: AccessKey, secret_key: str, *, now_ns: int) -> CreatedKey:
    return CreatedKey(**_key_fields(key, KeyUse(), now_ns), key=secret_key)


def _key_fields(key: AccessKey, usage: KeyUse, now_ns: int) -> dict[str, Any]:
    expired = key.expires_ns is not None and key.expires_ns <= now_ns
    return {
        "id": key.key,
        "name": key.name,
        "prefix": key.prefix,
        "state": "revoked" if key.revoked_ns is not None else "expired" if expired else "active",
        "models": key.models,
        "dialects": key.dialects,
        "created_ns": key.created_ns,
        "expires_ns": key.expires_ns,
        "revoked_ns": key.revoked_ns,
        "limits": key.limits,
        "usage": usage,
    }


def number_lines(sequence: int, pack: LinePack) -> list[StoredLine]:
    """The lines of a pack with their ids: (stream sequence << 10) + place in the pack."""
    return [
        StoredLine(
            id=first_id(sequence) + place,
            node=pack.node,
            service=pack.service,
            unit=pack.unit,
            at_ns=line.at_ns,
            level=line.level,
            text=line.text,
            trace_id=line.trace_id,
        )
        for place, line in enumerate(pack.lines)
    ]


def split_names(names: str | None) -> list[str] | None:
    """`a,b` -> both names; `None` or nothing but commas -> `None`: all."""
    return [name for part in (names or "").split(",") if (name := part.strip())] or None


def sort_services(services: Iterable[Service]) -> list[Service]:
    return sorted(services, key=lambda item: (item.node, item.service))


ERROR_KINDS: Final[Mapping[int, str]] = {404: "not_found", 409: "conflict", 503: "unavailable", 500: "internal"}


def render_error(status: int, message: str, *, error_id: str, kind: str | None = None) -> ErrorBody:
    """The body for a status; without `kind`, the usual one of that status."""
    return ErrorBody(error=ErrorDetail(message=message, kind=kind or ERROR_KINDS.get(status, "rejected"), id=error_id))

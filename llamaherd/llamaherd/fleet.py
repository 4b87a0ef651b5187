"""What the ui's REST API answers, as far as the command line shows it. Unknown fields are ignored."""

from typing import Any

import msgspec

from llamaherd_shared.commands import StoredLine
from llamaherd_shared.events.access import KeyLimits
from llamaherd_shared.events.line import LEVELS, Level


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """One llama-server as the ui sees it."""

    index: int = 0
    state: str
    since_ns: int = 0
    pid: int | None = None
    host: str | None = None
    port: int | None = None
    generation: int = 0
    """Counts its spawns."""
    stage: str | None = None
    """Of loading; `None` when it is not loading."""
    ratio: float | None = None
    """0 to 1 of loading."""
    ready_at_ns: int | None = None
    """When loading is expected to end, as far as an earlier load tells."""
    load_s: float | None = None
    slots: int | None = None
    context_tokens: int | None = None
    options: dict[str, Any] = {}
    """What llama-server was told, by the names of `models` in llamaherd.yaml."""
    restarts: int = 0
    restart_at_ns: int | None = None
    cause: str = ""
    """Of its last exit."""
    fault: str = ""
    """What kind of trouble ended it (docs/faults.md)."""
    reason: str | None = None
    waits_for: str | None = None
    """What keeps its load from beginning, when that is memory."""
    uses: dict[str, int] = {}
    """Bytes of the node's memory by device, as last measured."""
    last_lines: list[str] = []


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """One GGUF file and the llama-server that serves it, if one does."""

    model: str
    node: str
    architecture: str = ""
    parameters: int = 0
    size_bytes: int = 0
    context_tokens: int = 0
    quantization: str = ""
    chat: bool = False
    capabilities: list[str] = []
    rejected: str | None = None
    """Why it cannot be served."""
    instance: Instance | None = None
    replicas: list[Instance] = []
    """Its further instances on this node, but those that are stopped."""

    @property
    def state(self) -> str:
        if self.rejected is not None:
            return "rejected"
        if any(replica.state == "ready" for replica in self.replicas):
            return "ready"
        first = self.instance.state if self.instance else "stopped"
        return self.replicas[0].state if self.replicas and first == "stopped" else first

    @property
    def has_process(self) -> bool:
        return any(each is not None and each.pid is not None for each in (self.instance, *self.replicas))

    @property
    def rows(self) -> list["Model"]:
        """One for each instance that is not stopped: the same with that instance alone."""
        return [
            msgspec.structs.replace(self, instance=instance, replicas=[])
            for instance in (self.instance, *self.replicas)
            if instance is not None and instance.state != "stopped"
        ]


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """One service as its presence tells."""

    node: str
    service: str
    version: str = ""
    pid: int
    started_ns: int = 0
    ready: bool = False
    note: str = ""
    seen_ns: int = 0


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """One host that runs, or ran, a supervisor."""

    node: str
    version: str = ""
    cpus: int = 0
    memory_bytes: int = 0
    joined_ns: int = 0
    left_ns: int | None = None
    """When its supervisor stopped; `None` while it runs, as far as it said."""
    drained: bool = False
    """For maintenance: it takes no loads."""


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    at: dict[str, int] = {}
    """Where this answer stands in each stream: a sequence, of requests and lines an id."""
    stream_id: str = ""
    nodes: list[Node] = []
    models: list[Model] = []
    services: list[Service] = []


class KeyUse(msgspec.Struct, frozen=True, kw_only=True):
    """What an API key used in the last 30 days."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    last_used_ns: int | None = None


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """One API key, as far as it is shown."""

    id: str
    name: str
    state: str = "active"
    """`active`, `expired` or `revoked`."""
    models: list[str] = []
    dialects: list[str] = []
    created_ns: int = 0
    expires_ns: int | None = None
    limits: KeyLimits = KeyLimits()
    usage: KeyUse = KeyUse()


class CreatedKey(ApiKey, frozen=True, kw_only=True):
    key: str
    """The key itself, this once."""


def stream_position(fleet: Fleet, *, logs: int | None = None, events: int | None = None) -> str:
    """The id after which `GET /api/v1/stream` continues: where the answer stands, or given sequences."""
    at = fleet.at
    facts = events if events is not None else at.get("HERD_EVENTS", 0)
    lines = logs if logs is not None else at.get("HERD_LOGS", 0)
    return f"{fleet.stream_id}:{facts}.{at.get('HERD_REQUESTS', 0)}.{lines}"


def line_matches(line: StoredLine, *, text: str | None, min_level: Level, source: str | None) -> bool:
    """The condition of `logs -f` on a live line: the same as the stored ones were asked for.

    `source` is a service, or a unit as in `cria/0`; `text` holds words that all occur.
    """
    if LEVELS.index(line.level) < LEVELS.index(min_level):
        return False
    if source is not None and source not in (line.service, line.unit, line.unit.partition("/")[0]):
        return False
    words = (text or "").replace('"', " ").lower().split()
    return all(word in line.text.lower() for word in words)

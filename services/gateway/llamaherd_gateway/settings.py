"""What can be set about the gateway: the mapping `gateway:` of llamaherd.yaml, or `LLAMAHERD_GATEWAY_*`."""

from typing import Annotated, Literal

import msgspec

from llamaherd_gateway.access.keys import KeysMode
from llamaherd_shared.addresses import is_loopback
from llamaherd_shared.events.presence import BEAT_S
from llamaherd_shared.settings import SettingsError

Seconds = Annotated[float, msgspec.Meta(gt=0)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]


class GatewaySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Times are seconds of silence unless they say otherwise: a busy request is never cut."""

    host: str = "127.0.0.1"
    """Address to listen on. On anything but loopback every request needs an API key (`keys`)."""
    port: Port = 8080
    """Every dialect by its paths. 0: any free port; the log says which."""
    ollama_port: Port = 11434
    """Where Ollama's clients look first. 0: not listened on. When it is in use, the gateway does without it."""
    lmstudio_port: Port = 1234
    """The same for LM Studio's clients."""
    keys: KeysMode = "auto"
    """Whether requests need an API key (`llamaherd key create`): `required`, `off`, or `auto`: off on loopback only."""
    insecure: bool = False
    """Listen on more than loopback without keys, although anybody who reaches the port may use the models."""
    cors_origins: tuple[str, ...] = ()
    """Web pages that may use the gateway, e.g. `https://chat.example.com`; `*` stands for any part, alone for all.
    Those of this machine may always."""
    aliases: dict[str, str] = {}
    """Other names of models. A name may be a pattern: `claude-*: qwen3-8b`."""
    default_model: str | None = None
    """What answers to names that mean nothing; unset: those are an error."""
    conversations: Literal["on", "off"] = "on"
    """Whether answers of `/v1/responses` and LM Studio's `/api/v1/chat` are kept, with what was asked, so that a later
    request can go on from them (`previous_response_id`). A request that says `store: false` is never kept."""
    conversations_keep_days: Annotated[float, msgspec.Meta(gt=0, le=30)] = 30.0
    """Days until a kept answer is deleted."""
    queue_limit: Annotated[int, msgspec.Meta(ge=0)] = 512
    """Requests that may wait for one model's slots; one more is refused with 503."""
    queue_timeout_s: Seconds = 600.0
    """How long a request waits for a slot, or for the memory that its model needs."""
    load_timeout_s: Seconds = 120.0
    """How long a request waits for a model to be loaded without any progress event."""
    ask_timeout_s: Seconds = 10.0
    """How long a request waits for a supervisor that does not answer: time for it to be restarted."""
    node_silence_s: Annotated[float, msgspec.Meta(gt=BEAT_S)] = 16.0
    """A node whose supervisor has not been heard for so long (it says every 5 s that it lives) is asked for no loads,
    and what cannot be reached there is served elsewhere."""
    connect_timeout_s: Seconds = 3.0
    """To connect to a llama-server."""
    answer_timeout_s: Seconds = 3600.0
    """How long a llama-server may be silent while it works on a request (its own `--timeout` is the same)."""
    receive_timeout_s: Seconds = 30.0
    """For a request's head in all, and between two pieces of its body."""
    stalled_client_s: Seconds = 120.0
    """A client that takes nothing of its answer for so long is cut off: it holds a slot."""
    keep_alive_s: Seconds = 75.0
    """How long an idle client connection is kept."""
    drain_timeout_s: Seconds = 5.0
    """How long a stop waits for requests in flight."""
    max_body_bytes: Annotated[int, msgspec.Meta(ge=1024)] = 64 * 2**20
    """Largest request body; images arrive inside the JSON."""
    max_head_bytes: Annotated[int, msgspec.Meta(ge=1024)] = 32 * 2**10
    """Largest request line and headers together."""

    def __post_init__(self) -> None:
        if self.keys == "off" and not self.insecure and not is_loopback(self.host):
            raise SettingsError(
                f"setting `gateway.keys`: without keys, {self.host} lets others use the models: "
                "set `gateway.keys: required`, or `gateway.insecure: true` if that is meant"
            )

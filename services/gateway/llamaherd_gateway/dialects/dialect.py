"""What a dialect is, to the relay: how requests are read, put to llama-server, and answered. Types only.

A request goes through three steps, each a pure function of its arguments:

1. `Route.read` reads the body once, without knowing the model: -> `Asked` (or `BadRequest`).
2. The relay finds the model, waits for its turn and for an instance.
3. `Route.call` puts it to llama-server: -> `Call`, with a `Translation` of what comes back, or without one when
   llama-server's answer is what the client expects, byte for byte.

Time, ids and facts about the model are arguments, so every dialect is tested without a process or a clock.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from hashlib import sha256
from typing import Any, Final, Literal, Protocol

import msgspec

from llamaherd_gateway.problems import BadRequest, Problem
from llamaherd_shared.events.turn import TurnKept
from llamaherd_shared.model_options import LoadOptions

Header = tuple[bytes, bytes]
"""Name in lower case, value."""

JSON: Final = "application/json"
EVENTS: Final = "text/event-stream"
LINES: Final = "application/x-ndjson"
"""Content types of answers; the last two are those of streams."""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the model that will answer."""

    model: str
    """Its own name: what llama-server calls itself (`--alias`)."""
    context_tokens: int = 0
    """Context of one slot; 0: not known yet."""
    batch_tokens: int = 0
    """Longest text that can be embedded (llama-server's physical batch); 0: not known, so the context counts."""
    slots: int = 1
    architecture: str = ""
    quantization: str = ""
    """e.g. `Q4_K_M`"""
    capabilities: frozenset[str] = frozenset({"completion"})
    """Of `completion`, `embedding`, `tools`, `thinking`, `insert`, `vision`, `audio`."""
    preset: "Preset | None" = None
    """What the name that was asked for brings. The relay adds it to what goes to llama-server; a dialect has to look
    at it only when it sends values of its own for what the client left out, or measures the prompt."""


class Preset(msgspec.Struct, frozen=True, kw_only=True):
    """What an alias says in every request that does not say otherwise."""

    system: str = ""
    messages: tuple[dict[str, str], ...] = ()
    """That every conversation begins with, behind the system message."""
    options: dict[str, Any] = {}
    """By Ollama's names."""

    def begin(self, messages: Sequence[Any]) -> Sequence[Any]:
        """A chat with its beginning, the same object when that is nothing.

        Messages are mappings whose `role` is a text, or JSON. A system message of the request's own replaces ours.
        """
        own = 1 if messages and _role(messages[0]) in ("system", "developer") else 0
        system = [{"role": "system", "content": self.system}] if self.system and not own else []
        before = [*system, *messages[:own], *self.messages]
        return [*before, *messages[own:]] if messages and len(before) > own else messages


def _role(message: Mapping[str, Any]) -> object:
    role = message.get("role")
    return bytes(role).decode().strip('"') if isinstance(role, msgspec.Raw) else role


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """What a translation needs of the world."""

    request_id: str
    """Unique, hexadecimal."""
    received_ns: int
    """When the request had arrived in whole, Unix nanoseconds."""
    load_ns: int = 0
    """Nanoseconds spent waiting for a ready instance."""


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A request that has been read."""

    model: str
    """As the client wrote it."""
    stream: bool = False
    action: Literal["call", "load", "unload"] = "call"
    """`load` and `unload` are answered by `Route.settle`, without asking llama-server anything."""
    keep_alive_s: float | None = None
    """How long the model stays loaded after this request; negative: for ever; `None`: nothing was said."""
    keeps_what_it_loads: bool = False
    """Whether `keep_alive_s` counts only for a request that had to wait for the model to be loaded."""
    previous: str = ""
    """The kept answer that this request goes on from; empty: it brings its whole conversation, or has been given it."""
    keep: bool = False
    """Whether its answer is to be kept, so that a later request can go on from it."""
    answer_id: str = ""
    """The answer under way that this request is about: it goes to the instance that gives it."""
    load: LoadOptions | None = None
    """What the model must have been loaded with; `None`: nothing was said."""
    body: bytes = b""
    """What goes to llama-server when nothing has to be translated."""
    text: bytes = b""
    """The conversation from its beginning; empty: what the client sent is that."""
    content: Any = None
    """What the dialect's own `call` needs to know."""


class Translation(Protocol):
    """llama-server's answer in the client's dialect. Made for one request, used once."""

    content_type: bytes
    """Of the answer: that of a stream or of a plain answer, as the request asked for."""

    def feed(self, data: bytes, now_ns: int) -> bytes:
        """A stream's bytes as they come, split anywhere, -> what can be sent now (often nothing).

        What is sent ends with a whole record, so that an error can follow at any moment.
        """

    def end(self, now_ns: int) -> bytes:
        """The stream ended as it should: whatever is still to be said."""

    def whole(self, body: bytes, now_ns: int) -> bytes:
        """A plain answer (status 200) at once. Raises `ValueError` when llama-server's answer makes no sense."""

    def fail(self, problem: Problem, now_ns: int) -> bytes:
        """The records that end a stream which had begun and cannot go on."""


class Keeper(Protocol):
    """What of an answer is kept, and how the client is told. Asked between `feed` and the end of a `Translation`."""

    def turn(self, body: bytes, now_ns: int) -> TurnKept | None:
        """llama-server's answer is complete: what is to be kept; `None`: nothing, because it failed.

        `body`: of a plain answer. Raises `ValueError` when it makes no sense.
        """

    def not_kept(self) -> None:
        """It cannot be kept: the answer's end is to say so."""


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A request to llama-server."""

    path: str
    body: bytes
    translation: Any = None
    """A `Translation`; `None`: the answer is passed on as it comes."""
    keeper: Any = None
    """A `Keeper`; `None`: the answer is not kept."""
    content_type: bytes = b"application/json"
    """Of `body`."""


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """How the requests of a route go on from kept answers."""

    resume: Callable[[Asked, Sequence[TurnKept]], Asked]
    """What was asked, behind these turns, oldest first: the whole conversation up to `Asked.previous`."""
    missing: Callable[[str], BadRequest]
    """There is no kept answer with this id, or it is another key's."""
    off: Callable[[], BadRequest]
    """This gateway keeps none."""


class Ask(Protocol):
    """A question to the llama-server that will answer, before the call itself."""

    async def __call__(self, path: str, content: Any) -> Any:
        """POST `content` as JSON to `path`; the decoded answer. Raises `HerdError` as the call itself would."""


class Dialect(msgspec.Struct, frozen=True, kw_only=True):
    """How one family of clients wants to be spoken to."""

    name: str
    """`openai`, `anthropic`, `ollama`, `lmstudio` or `llama`: the word in keys, events and docs."""
    render_problem: Callable[[Problem, str], bytes]
    """Body of an error answer; the second argument is the request's id."""
    render_stream_error: Callable[[Problem, str], bytes]
    """The same, in a stream that is passed through as it comes."""
    streams_events: bool = True
    """Whether its streams are server-sent events, in which comments may stand."""
    status_of: Callable[[Problem], int] = lambda problem: problem.status
    """Some dialects have their own idea of a status (Anthropic's 529)."""
    headers: Callable[[str], Sequence[Header]] | None = None
    """Headers of the dialect's own, on every answer."""


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """One POST route that needs a model."""

    path: str
    dialect: Dialect
    method: str = "POST"
    read: Callable[[bytes, Sequence[Header]], Asked]
    """Body and headers -> what was asked. Raises `BadRequest`."""
    call: Callable[[Asked, Facts, Turn], Call] | None = None
    """Raises `BadRequest` for what this model cannot do. `None`: `Asked.body` goes to the same path as it is."""
    memory: Memory | None = None
    """`None`: answers are not kept."""
    prepare: Callable[[Asked, Facts, Ask], Awaitable[Asked]] | None = None
    """Run before `call` when questions have to be asked first, e.g. how many tokens a text has."""
    settle: Callable[[Asked, Turn], bytes] | None = None
    """The answer (JSON) to an `Asked` whose action is `load` or `unload`, once that is done."""
    generates: bool = True
    """Whether it takes a slot of llama-server's: those wait in the model's queue."""
    passive: bool = False
    """Looks at a model: refused when that is not loaded, rather than loading it."""
    administrative: bool = False
    """Shows or changes what belongs to all users of a model."""
    shape: type[msgspec.Struct] | None = None
    """Of the JSON body, as far as it is looked at; `None`: llama-server judges it."""
    needs: tuple[str, ...] = ("model",)
    """Fields of the body without which it is refused."""
    takes: str = JSON
    """Content type of the body."""
    gives: tuple[str, ...] = (JSON,)
    """Content types of a good answer."""
    about: str = ""
    """One line for docs/api.md and /openapi.json."""
    example: str = ""
    """What stands behind the path in the curl line of docs/api.md, which is run as a test: a JSON body, or curl's own
    options (`-F ...`). A path (with query) before it stands for one that has holes."""
    example_status: int = 200
    """That the curl line is answered with; another one for what is refused."""


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """One instance of a model, as far as clients are told."""

    name: str
    """`<node>/<model>/<index>`"""
    node: str
    state: str
    """Of the seven states (`loading`, `ready`, ...)."""
    context_tokens: int = 0
    """Of one slot; 0 until it is ready."""
    slots: int = 0
    options: dict[str, Any] = {}
    """What it was loaded with, by the names of `models` in llamaherd.yaml."""
    expires_ns: int | None = None
    """When it will be unloaded if nothing is asked of it; `None`: never."""


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """A model that can be asked for, as every dialect's list tells of it."""

    name: str
    """The name to ask for: the model's own or an alias."""
    model: str
    """Its own name; equal to `name` unless that is an alias."""
    title: str = ""
    """GGUF `general.name`."""
    architecture: str = ""
    parameters: int = 0
    size_bytes: int = 0
    context_tokens: int = 0
    """Training context; 0 when the file does not say."""
    quantization: str = ""
    """e.g. `Q4_K_M`"""
    modified_ns: int = 0
    capabilities: frozenset[str] = frozenset({"completion"})
    loaded: tuple[Loaded, ...] = ()

    @property
    def digest(self) -> str:
        """64 hex digits that change when the file does: SHA-256 of name, size and time, not of gigabytes."""
        return sha256(f"{self.model}\0{self.size_bytes}\0{self.modified_ns}".encode()).hexdigest()


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """What only the model's file says; its supervisor reads it when asked."""

    metadata: dict[str, Any] = {}
    """GGUF key -> value, long arrays left out."""
    chat_template: str = ""
    tensors: list[tuple[str, str, list[int]]] = []
    """(name, type, shape)"""


class Herd(msgspec.Struct, frozen=True, kw_only=True):
    """What the gateway's own pages are rendered from."""

    cards: tuple[Card, ...]
    """Sorted by name."""
    now_ns: int
    version: str


class PageRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request the gateway answers by itself."""

    method: str
    parameters: dict[str, str] = {}
    """Of the path's `{name}`s, decoded."""
    query: dict[str, str] = {}
    headers: dict[str, str] = {}
    """Names in lower case."""
    key: str = ""
    """Id of the API key it came with; empty: none."""
    body: bytes = b""


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer."""

    body: bytes
    status: int = 200
    content_type: str = JSON
    headers: tuple[Header, ...] = ()


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """One route that is answered from what the gateway knows: lists of models and the like. Never loads a model."""

    method: str
    path: str
    """May hold `{name}`, one segment, or `{name*}`, the rest of the path."""
    dialect: Dialect
    answer: Callable[[PageRequest, Herd], Reply]
    """Raises `BadRequest` or another `HerdError`."""
    serves: bool = True
    """Whether there is any other answer than a refusal."""
    about: str = ""
    example: str = ""
    """As in `Route`; empty when the path alone is enough."""
    example_status: int = 200

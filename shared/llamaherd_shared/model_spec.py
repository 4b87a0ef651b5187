"""What whoever runs the herd says about models: `models` in llamaherd.yaml, read by supervisor and gateway.

A key is a model's name or a pattern. Of what fits, `*` counts least, then the other patterns in the file's order, then
the entry of exactly that name; each stands above what it `extends`. Where two say something about the same, mappings
are merged and everything else is replaced; `null` takes back what was said below.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any, Final, Literal

import msgspec

from llamaherd_shared.errors import Rejected
from llamaherd_shared.model_options import LoadOptions, ModelOptions, find_conflict
from llamaherd_shared.repository import parse_repository

Capability = Literal["completion", "embedding", "rerank", "tools", "thinking", "insert", "vision", "audio"]

INDEX: Final = "${INDEX}"
"""Stands for an instance's number."""
DEFAULTS: Final = "*"
"""The key that fits every model."""
_PATTERN: Final = frozenset("*?[")
_OF_ONE_MODEL: Final = ("aliases", "path", "repository", "command")
"""What a pattern cannot say."""
_FURTHER: Final = ("rope_scaling", "rope_scale", "rope_freq_base", "rope_freq_scale")
"""Options by which a model reaches beyond its training context."""
_OF_ANY_SERVER: Final = frozenset({"slots", "context_tokens"})
"""Options that also tell something about a server that is not llama-server."""
_LISTS_OF_WORDS: Final = ("args", "command")


class BadEntry(Rejected):
    """An entry that cannot be used."""

    def __init__(self, message: str, *keys: str) -> None:
        super().__init__(message)
        self.keys = keys
        """Where in the entry."""


class Rules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Parameters of requests. Names are those of the body that llama-server gets (`temperature`)."""

    set: dict[str, Any] = {}
    """Always this value, whatever the client says."""
    default: dict[str, Any] = {}
    """This value when the client says nothing (or `null`)."""
    strip: tuple[str, ...] = ()
    """Never passed on."""
    clamp: dict[str, tuple[float | None, float | None]] = {}
    """Numbers are moved into [lowest, highest]; `null` leaves that side open."""

    def __bool__(self) -> bool:
        return bool(self.set or self.default or self.strip or self.clamp)


class ModelSpec(ModelOptions, frozen=True, kw_only=True):
    """Everything that can be said about a model; the options of llama-server are `ModelOptions`."""

    path: str | None = None
    """File to serve under this name: absolute, or in the models folder. Unset: the file of this name that is found."""
    repository: str | None = None
    """Instead of `path`: where the file comes from, `OWNER/NAME` or `OWNER/NAME:QUANTIZATION` of the hub. It is pulled
    when it is not in the models folder."""
    args: tuple[str, ...] = ()
    """Further words for llama-server, e.g. `[--keep, 64]`. What has a name of its own here is refused."""
    env: dict[str, str] = msgspec.field(default_factory=dict)
    """Variables for its process; `env:NAME` and `file:PATH` are looked up at each start. Values are never shown. Here,
    in `args` and in `command` `${INDEX}` is the number of the instance, from 0."""
    command: tuple[str, ...] = ()
    """Start this instead of llama-server: any server with OpenAI's API. `${PORT}`, `${HOST}`, `${MODEL}` and
    `${MODEL_PATH}` are filled in; in `env` also `${API_KEY}`, which requests will carry."""
    health_path: Annotated[str, msgspec.Meta(pattern="^/")] = "/health"
    """Of such a server: answers 200 to GET once it serves."""
    aliases: tuple[str, ...] = ()
    """Other names, or patterns of names, that mean this model."""
    capabilities: tuple[Capability, ...] | None = None
    """What it can be asked for; unset: what its file tells."""
    concurrency: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """Requests of one gateway that an instance works on at once; unset: as many as it has slots."""
    failover: bool = False
    """Loaded on another node that has it as soon as its node is gone, or drained: nobody has to ask for it first."""
    fallback: str | None = None
    """The model that answers when this one cannot be loaded."""
    drain_on_abort: bool = False
    """Read an answer to its end when its client leaves, instead of closing the connection: for an engine that an
    abort breaks. Its slot stays taken until then."""
    rules: Rules = Rules()
    """`set`, `default`, `strip` and `clamp` parameters of requests."""
    ttl_s: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """Unloaded after so long without a request, unless a client said otherwise (`keep_alive`). Unset: it stays."""
    pin: bool = False
    """Never unloaded for being idle, whatever clients say, nor to make room; only by `unload`."""
    priority: int = 0
    """Where memory is short, what has less is unloaded first; and of two loads that wait, this one's turn is first."""
    group: str = ""
    """One of `supervisor.groups`: whose rules about other models hold for it."""
    replicas: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    """Instances of it on a node that loads it: each a process with slots, and memory, of its own."""
    max_replicas: Annotated[int, msgspec.Meta(ge=1, le=64)] | None = None
    """While requests wait for its slots, more are started where memory is free, up to so many on all nodes together."""
    replica_idle_s: Annotated[float, msgspec.Meta(gt=0)] = 300.0
    """What was started so is unloaded after so long without work."""
    requires: dict[str, str] = msgspec.field(default_factory=dict)
    """Labels (`supervisor.labels`) that a node must have to load it, e.g. `{gpu: h200}`."""
    preload: bool = False
    """Loaded when the supervisor starts."""
    router: bool = False
    """Served by the node's router, one llama-server for several models, unless it has `args`, `env` or a `command`."""
    client_options: bool = True
    """Whether clients may ask for other options when it is loaded (Ollama's `num_ctx`, LM Studio's load)."""

    @property
    def most_replicas(self) -> int:
        """Instances that there may be on one node."""
        return max(self.replicas, self.max_replicas or 0)

    def of_instance(self, index: int) -> "ModelSpec":
        """What holds for one of its instances: `${INDEX}` in words and variables is its number, from 0."""
        if not any(INDEX in word for word in (*self.args, *self.command, *self.env.values())):
            return self
        return msgspec.structs.replace(
            self,
            args=tuple(word.replace(INDEX, str(index)) for word in self.args),
            command=tuple(word.replace(INDEX, str(index)) for word in self.command),
            env={name: value.replace(INDEX, str(index)) for name, value in self.env.items()},
        )

    @property
    def options(self) -> ModelOptions:
        """Those of llama-server."""
        return ModelOptions(**{name: getattr(self, name) for name in ModelOptions.__struct_fields__})


class ModelEntry(ModelSpec, frozen=True, kw_only=True):
    """One key of `models`."""

    extends: str | tuple[str, ...] = ()
    """Other keys of `models` that this one builds on, all but their `aliases`."""


class Models(msgspec.Struct, frozen=True):
    """`models` as a whole. Make it with `read_models`."""

    entries: Mapping[str, Mapping[str, Any]] = {}
    """What each key says, in the file's order."""

    def spec(self, model: str) -> ModelSpec:
        """What holds for the model of this name."""
        said: dict[str, Any] = {}
        for key in self._keys_for(model):
            for layer in self._layers(key):
                said = _merge(said, layer)
        return msgspec.convert(said, ModelSpec, strict=False)

    @property
    def names(self) -> list[str]:
        """Keys that are no patterns."""
        return [key for key in self.entries if not is_pattern(key)]

    @property
    def aliases(self) -> dict[str, str]:
        """Alias -> model."""
        return {alias: name for name in self.names for alias in self.spec(name).aliases}

    def _keys_for(self, model: str) -> Iterator[str]:
        patterns = [key for key in self.entries if is_pattern(key) and fnmatchcase(model, key)]
        # Python sorts in place: all but the defaults keep their order.
        yield from sorted(patterns, key=lambda key: key != DEFAULTS)
        if model in self.entries and model not in patterns:
            yield model

    def _layers(self, key: str) -> Iterator[dict[str, Any]]:
        """What it extends, and it."""
        entry = self.entries[key]
        for base in bases_of(entry):
            for layer in self._layers(base):
                yield {name: value for name, value in layer.items() if name != "aliases"}
        yield {name: value for name, value in entry.items() if name != "extends"}


def within(asked: LoadOptions, spec: ModelSpec, *, training_tokens: int) -> LoadOptions:
    """Not more context than the model was trained with, unless it is configured to reach further. 0: not known."""
    context = asked.context_tokens
    if context is None or not training_tokens or any(getattr(spec, name) is not None for name in _FURTHER):
        return asked
    return msgspec.structs.replace(asked, context_tokens=min(context, training_tokens))


def at_least(asked: LoadOptions, spec: ModelSpec) -> LoadOptions:
    """Not less context than is configured: what a request needs, where a person may want less."""
    if asked.context_tokens is None or spec.context_tokens is None:
        return asked
    return msgspec.structs.replace(asked, context_tokens=max(asked.context_tokens, spec.context_tokens))


def is_pattern(key: str) -> bool:
    return bool(_PATTERN & set(key))


def bases_of(entry: Mapping[str, Any]) -> Sequence[str]:
    """What it extends."""
    extends = entry.get("extends") or ()
    return (extends,) if isinstance(extends, str) else tuple(extends)


def read_entry(key: str, content: Any) -> dict[str, Any]:
    """One entry, checked by itself and spelled out. Raises `BadEntry`, or msgspec's `ValidationError`."""
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise BadEntry("must be a mapping of what holds for this model")
    for name in content:
        if name not in _FIELDS:
            raise BadEntry(f"unknown setting `{name}`; known here: {', '.join(sorted(_FIELDS))}", str(name))
    entry = {name: _words(name, value) if name in _LISTS_OF_WORDS else value for name, value in content.items()}
    checked = msgspec.convert(_merge({}, entry), ModelEntry, strict=False)
    _check_pattern(key, entry)
    _check_args(checked.args)
    _check_env(checked.env)
    _check_command(checked, entry)
    if checked.max_replicas is not None and checked.max_replicas < checked.replicas:
        raise BadEntry(f"`max_replicas` is {checked.max_replicas}, and `replicas` {checked.replicas}", "max_replicas")
    _check_repository(checked)
    return entry


def check_entries(entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises `BadEntry` for what only shows between entries; the first of its keys is the entry's."""
    owner: dict[str, str] = {}
    for key, entry in entries.items():
        _check_bases(key, entries, ())
        for alias in entry.get("aliases") or ():
            other = owner.setdefault(alias, key)
            if other != key:
                raise BadEntry(f"the alias {alias!r} belongs to `models.{other}` already", key, "aliases")
    models = Models(entries)
    for name in models.names:
        _check_source(name, models.spec(name))


def _check_bases(key: str, entries: Mapping[str, Mapping[str, Any]], above: tuple[str, ...]) -> None:
    for base in bases_of(entries[key]):
        if base in (*above, key):
            raise BadEntry(f"{' extends '.join((*above, key, base))}: an entry cannot build on itself", key, "extends")
        if base not in entries:
            raise BadEntry(f"extends {base!r}, and `models` has no such key", key, "extends")
        _check_bases(base, entries, (*above, key))


def _check_source(key: str, spec: ModelSpec) -> None:
    for name in ("path", "command"):
        if spec.repository is not None and getattr(spec, name):
            text = f"`repository` and `{name}` both say what is served under this name: leave one of them out"
            raise BadEntry(text, key, "repository")


def _check_pattern(key: str, entry: Mapping[str, Any]) -> None:
    for name in _OF_ONE_MODEL:
        if is_pattern(key) and entry.get(name):
            raise BadEntry(f"`{name}` is about one model, and {key!r} stands for many: use its name as the key", name)


def _check_args(args: Sequence[str]) -> None:
    for place, word in enumerate(args):
        conflict = find_conflict(word)
        if conflict is None:
            continue
        flag, option = conflict
        why = f"has a name of its own: set `{option}`" if option else "is the supervisor's to decide: leave it out"
        raise BadEntry(f"`{flag}` {why}", "args", str(place))


def _check_env(env: Mapping[str, str]) -> None:
    for name in env:
        if name.startswith("LLAMA_ARG_"):
            raise BadEntry(f"{name} is an option of llama-server: use its name here, or `args`", "env", name)
        if name.startswith("LLAMAHERD_") or name == "LLAMA_API_KEY":
            raise BadEntry(f"the variable {name} is the supervisor's to decide: leave it out", "env", name)


def _check_command(checked: ModelEntry, entry: Mapping[str, Any]) -> None:
    if not checked.command:
        return
    if checked.args:
        raise BadEntry("`args` are llama-server's: write them into `command`", "args")
    for name in ModelOptions.__struct_fields__:
        if entry.get(name) is not None and name not in _OF_ANY_SERVER:
            raise BadEntry(f"`{name}` is an option of llama-server: write what you mean into `command`", name)


def _check_repository(checked: ModelEntry) -> None:
    if checked.repository is None:
        return
    try:
        parse_repository(checked.repository)
    except Rejected as error:
        raise BadEntry(error.message, "repository") from error


def _words(name: str, value: Any) -> Any:
    """Words of a command line. YAML reads some as numbers, and `on` and `off` as booleans: the words were meant."""
    if isinstance(value, str):
        try:
            return shlex.split(value)
        except ValueError as error:
            raise BadEntry(f"`{name}` cannot be split into words ({error}): write a list", name) from error
    if not isinstance(value, list):
        return value
    spelled = {True: "on", False: "off"}
    return [
        spelled[word] if isinstance(word, bool) else str(word) if isinstance(word, int | float) else word
        for word in value
    ]


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for name, value in above.items():
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, dict):
            known = merged.get(name)
            merged[name] = _merge(known if isinstance(known, dict) else {}, value)
        else:
            merged[name] = value
    return merged


_FIELDS: Final = frozenset(ModelEntry.__struct_fields__)

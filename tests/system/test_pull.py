"""`llamaherd pull` through the whole herd, from a hub that breaks off."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from harness.deadline import wait_until
from harness.fake_hub import FakeHub, Switches
from harness.herd import Herd
from harness.random_gguf import write_random_gguf


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    data = write_random_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf").read_bytes()
    with FakeHub() as hub:
        hub.files["maker/Tiny-GGUF"] = {"Tiny-Q8_0.gguf": data, "Tiny-F16.gguf": data, "Tiny-Q2_K.gguf": data}
        yield hub


@pytest.fixture(scope="module")
def pulling(tmp_path_factory: pytest.TempPathFactory, hub: FakeHub) -> Iterator[Herd]:
    environ = {"LLAMAHERD_SUPERVISOR_HUB_URL": hub.url, "LLAMAHERD_SUPERVISOR_PULL_BACKOFF_S": "0.05"}
    herd = Herd(tmp_path_factory.mktemp("pulling"), environ=environ).start()
    yield herd
    hub.go_on.set()
    herd.stop()


def facts(herd: Herd, kind: str, model: str) -> list[dict[str, Any]]:
    events = httpx.get(f"{herd.ui_url}/api/v1/events?limit=1000", timeout=5).raise_for_status().json()["events"]
    return [event for event in events if event["type"] == kind and event["model"] == model]


def test_pulled_model_answers(pulling: Herd, hub: FakeHub) -> None:
    hub.switches = Switches(break_after=[100_000, 1000])

    pulled = pulling.cli("pull", "maker/Tiny-GGUF", "--json")
    answered = pulling.cli("run", "Tiny-Q8_0", "hello", "--max-tokens", "2", "--json")

    assert pulled.returncode == 0, pulled.stderr
    end = json.loads(pulled.stdout)
    assert (end["type"], end["model"]) == ("pull.finished.v1", "Tiny-Q8_0")
    assert Path(end["path"]).is_relative_to(pulling.models_dir)
    assert answered.returncode == 0, answered.stderr


def test_pull_says_what_there_is_when_it_cannot_be_done(pulling: Herd) -> None:
    unknown = pulling.cli("pull", "maker/Nothing")
    missing = pulling.cli("pull", "maker/Tiny-GGUF:Q6_K")

    assert (unknown.returncode, missing.returncode) == (3, 3)
    assert "has no repository maker/Nothing" in unknown.stderr
    assert "it has F16, Q2_K, Q8_0" in missing.stderr


def test_interrupted_pull_is_cancelled_and_goes_on_later(pulling: Herd, hub: FakeHub) -> None:
    hub.switches = Switches(hold_after=50_000)
    words = [sys.executable, "-m", "llamaherd", "pull", "maker/Tiny-GGUF:F16"]
    process = subprocess.Popen(words, env=pulling.environ, stderr=subprocess.PIPE, text=True)

    def has_come() -> bool:
        return any(fact["done_bytes"] >= 50_000 for fact in facts(pulling, "pull.progressed.v1", "Tiny-F16"))

    wait_until(has_come, what="some of it has come")

    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    hub.switches = Switches()
    again = pulling.cli("pull", "maker/Tiny-GGUF:F16")

    assert process.returncode == 130
    assert "the same command goes on where it stopped" in said
    assert [fact["cause"] for fact in facts(pulling, "pull.failed.v1", "Tiny-F16")] == ["cancelled"]
    assert again.returncode == 0, again.stderr
    assert hub.downloads()[-1].range == "bytes=50000-"


def test_pull_that_is_not_waited_for_goes_on_by_itself(pulling: Herd, hub: FakeHub) -> None:
    done = pulling.cli("pull", "maker/Tiny-GGUF:Q2_K", "--no-wait")

    assert done.returncode == 0, done.stderr
    assert "Tiny-Q2_K: pulling" in done.stdout
    wait_until(lambda: facts(pulling, "pull.finished.v1", "Tiny-Q2_K"), what="it has been pulled")

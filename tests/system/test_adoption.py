"""kill -9 of the supervisor in the middle of an answer of a real llama-server: nobody notices."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from harness.deadline import wait_until
from harness.herd import Herd, free_port, llama_server_or_none
from llamaherd_supervisor.command_line import INSTANCE_VARIABLE, render_mark

ANSWER_S = 6.0
"""Long enough for a supervisor to be killed and started again."""


@pytest.fixture
def endless_herd(tmp_path: Path) -> Iterator[Herd]:
    """A demo herd whose llama-server goes on when its context is full."""
    if llama_server_or_none() is None:
        pytest.skip("no llama-server: build one with `uv run llamaherd install llama-server` (about five minutes)")
    config = tmp_path / "llamaherd.yaml"
    config.write_text('models: {"*": {args: ["--context-shift"]}}')
    running = Herd(tmp_path, "--demo", "--config", str(config)).start()
    yield running
    running.stop()


def tokens_within(herd: Herd, seconds: float) -> int:
    """How many tokens this machine makes in so many seconds."""
    answer = herd.chat("cria", "hello", max_tokens=300, ignore_eos=True).raise_for_status().json()
    return int(answer["timings"]["predicted_per_second"] * seconds)


def moves_of(herd: Herd) -> list[str]:
    """Types of the facts about it, but for measurements."""
    return [event["type"] for event in started(herd) if event["type"] != "instance.measured.v1"]


def started(herd: Herd) -> list[dict[str, Any]]:
    answer = httpx.get(f"{herd.ui_url}/api/v1/events", params={"limit": 1000}, timeout=5).raise_for_status()
    return [event for event in answer.json()["events"] if event["type"].startswith("instance.")]


def logged(herd: Herd) -> dict[str, Any]:
    """What the log service has of the llama-server."""
    query = {"service": "llama-server", "unit": "cria/0", "limit": 1000}
    found: dict[str, Any] = httpx.get(f"{herd.ui_url}/api/v1/logs", params=query, timeout=5).raise_for_status().json()
    return found


@pytest.mark.timeout(300)  # a machine that slows down meanwhile takes longer for its answer
def test_answer_goes_on_and_the_next_supervisor_adopts_the_instance(endless_herd: Herd) -> None:
    herd = endless_herd
    wanted = tokens_within(herd, ANSWER_S)
    (before,) = herd.llama_servers()
    facts = moves_of(herd)
    body = {"model": "cria", "stream": True, "max_tokens": wanted, "ignore_eos": True}
    body["messages"] = [{"role": "user", "content": "hello"}]

    with httpx.stream("POST", f"{herd.gateway_url}/v1/chat/completions", json=body, timeout=60) as answer:
        lines = (line for line in answer.iter_lines() if line.startswith("data: "))
        next(lines)
        killed = herd.kill("supervisor")
        herd.eventually(lambda: herd.pid("supervisor") != killed, within_s=10, what="a new supervisor")
        herd.eventually(lambda: adopted(herd), within_s=10, what="the instance is adopted")
        assert slots_at_work(herd) == 1, "the answer was over too soon to show anything"
        rest = list(lines)

    assert rest[-1] == "data: [DONE]"
    last = json.loads(rest[-2].removeprefix("data: "))
    assert last["choices"][0]["finish_reason"] == "length"
    assert last["timings"]["predicted_n"] == wanted
    (after,) = herd.llama_servers()
    assert after.pid == before.pid
    assert moves_of(herd) == facts, "nothing has happened to it"
    assert herd.chat("cria", "hello", max_tokens=2).status_code == 200
    wait_until(lambda: told_as_written(herd), what="every line was told, once")


def adopted(herd: Herd) -> bool:
    return "llama-server adopted" in (herd.data_dir / "logs" / "supervisor.log").read_text()


def slots_at_work(herd: Herd) -> int:
    slots = httpx.get(f"{herd.gateway_url}/slots", params={"model": "cria"}, timeout=5).raise_for_status().json()
    return sum(slot["is_processing"] for slot in slots)


def told_as_written(herd: Herd) -> bool:
    found = logged(herd)
    text = (herd.data_dir / "instances" / "cria-0.1.log").read_text()
    written = [line.rstrip() for line in text.splitlines() if line.strip()]
    told = [line["text"] for line in found["lines"]]
    return found["dropped"] == 0 and sorted(told) == sorted(written)


def test_foreign_orphan_is_ended_by_the_next_supervisor(own_herd: Herd) -> None:
    program, node = own_herd.state()["llama_server"], own_herd.state()["node"]
    mark = render_mark(str(own_herd.data_dir), node=node, model="cria", index=1, generation=4)
    words = [program, "--model", str(own_herd.models_dir / "cria.gguf"), "--port", str(free_port())]
    orphan = subprocess.Popen(
        words,
        env={**os.environ, INSTANCE_VARIABLE: mark},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        (ours,) = [process for process in own_herd.llama_servers() if process.pid != orphan.pid]

        own_herd.kill("supervisor")

        assert orphan.wait(20) is not None
        own_herd.eventually(lambda: adopted(own_herd), within_s=10, what="our own was adopted")
        assert psutil.pid_exists(ours.pid)
    finally:
        orphan.kill()
        orphan.wait(5)

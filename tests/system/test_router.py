"""A herd whose models one real llama-server serves as a router."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest

from harness.deadline import wait_until
from harness.herd import Herd, llama_server_or_none
from harness.random_gguf import write_random_gguf


@pytest.fixture(scope="module")
def herd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Herd]:
    if llama_server_or_none() is None:
        pytest.skip("no llama-server: build one with `uv run llamaherd install llama-server`")
    models = {
        "*": {"router": True},
        "cria": {"aliases": ["gpt-*"]},
        "odd": {"path": "random.gguf", "override_kv": ["llama.block_count=int:99"]},
    }
    environ = {
        "LLAMAHERD_MODELS": json.dumps(models),
        "LLAMAHERD_SUPERVISOR_ROUTER_MAX_MODELS": "1",
        "LLAMAHERD_SUPERVISOR_MIN_RESIDENCE_S": "0",
    }
    running = Herd(tmp_path_factory.mktemp("routed"), "--demo", environ=environ)
    write_random_gguf(running.models_dir / "random.gguf")
    yield running.start()
    running.stop()


def router_of(herd: Herd) -> psutil.Process:
    (found,) = [process for process in herd.processes() if "--models-preset" in process.cmdline()]
    return found


def served(herd: Herd) -> list[str]:
    """Models with a process in the router."""
    lines = [process.cmdline() for process in router_of(herd).children()]
    return sorted(words[words.index("--alias") + 1] for words in lines)


def facts(herd: Herd, model: str) -> list[dict[str, Any]]:
    listed = httpx.get(f"{herd.ui_url}/api/v1/events", params={"limit": 1000}, timeout=5).json()["events"]
    return [fact for fact in listed if fact.get("model") == model and fact["type"].startswith("instance.")]


def test_two_models_that_share_one_place_both_answer_and_the_eviction_is_told(herd: Herd) -> None:
    first = herd.chat("cria", "Who are you?")
    second = herd.chat("random", "hello", max_tokens=3)
    again = herd.chat("gpt-5", "Who are you?")

    assert [answer.status_code for answer in (first, second, again)] == [200] * 3
    assert "cria" in first.json()["choices"][0]["message"]["content"].lower()
    assert again.json()["choices"][0]["message"] == first.json()["choices"][0]["message"]
    assert again.json()["model"] == "gpt-5"
    ended = [fact["cause"] for fact in facts(herd, "cria") if fact["type"] == "instance.exited.v1"]
    assert ended[0] == "evicted for random"
    assert served(herd) == ["cria"]


def test_a_stream_and_looks_come_through_the_router(herd: Herd) -> None:
    body = {"model": "cria", "stream": True, "messages": [{"role": "user", "content": "What is llamaherd?"}]}

    with httpx.stream("POST", f"{herd.gateway_url}/v1/chat/completions", json=body, timeout=30) as response:
        records = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    props = httpx.get(f"{herd.gateway_url}/props", params={"model": "cria"}, timeout=5).json()
    tokens = httpx.post(f"{herd.gateway_url}/tokenize", json={"model": "cria", "content": "hello"}, timeout=5).json()

    assert records[-1] == "[DONE]"
    assert len(records) > 5
    assert props["total_slots"] == herd.instance("cria")["slots"]
    assert tokens["tokens"]


def test_unload_and_load_are_the_same_commands_and_facts(herd: Herd) -> None:
    herd.chat("cria", "hello", max_tokens=1)

    unloaded = herd.cli("unload", "cria")
    left = served(herd)
    loaded = herd.cli("load", "cria", "--context", "1024")

    assert (unloaded.returncode, loaded.returncode) == (0, 0), unloaded.stderr + loaded.stderr
    assert left == []
    types = [fact["type"] for fact in facts(herd, "cria")]
    told = [name for name in types if name not in ("instance.progressed.v1", "instance.measured.v1")]
    assert told[-5:] == [
        "instance.draining.v1",
        "instance.stopping.v1",
        "instance.exited.v1",
        "instance.started.v1",
        "instance.ready.v1",
    ]
    instance = herd.instance("cria")
    assert (instance["state"], instance["context_tokens"]) == ("ready", 1024)
    assert instance["pid"] in {child.pid for child in router_of(herd).children()}
    assert "cria" in herd.cli("ps").stdout


def test_lines_of_a_model_are_found_under_its_name(herd: Herd) -> None:
    herd.chat("cria", "hello", max_tokens=1)

    def found() -> object:
        query = {"unit": "cria/0", "service": "llama-server", "text": "slot", "limit": 5}
        lines = httpx.get(f"{herd.ui_url}/api/v1/logs", params=query, timeout=5).json()["lines"]
        return lines and all(not line["text"].startswith("[") for line in lines)

    assert wait_until(found, within_s=5, what="a line of the model is found")


def test_a_router_killed_in_the_middle_is_back_and_nothing_is_left_of_it(herd: Herd) -> None:
    herd.chat("cria", "hello", max_tokens=1)
    router = router_of(herd)
    before = {router.pid, *(child.pid for child in router.children())}

    router.kill()
    answer = herd.chat("cria", "Who are you?")

    assert answer.status_code == 200
    assert "cria" in answer.json()["choices"][0]["message"]["content"].lower()
    assert not before & {process.pid for process in herd.processes()}
    ended = [fact for fact in facts(herd, "cria") if fact["type"] == "instance.exited.v1"][-1]
    assert (ended["cause"], ended["signal"]) == ("crash", "SIGKILL")


def test_a_killed_supervisor_finds_the_models_of_its_router_again(herd: Herd) -> None:
    herd.chat("cria", "hello", max_tokens=1)
    router, count = router_of(herd).pid, len(facts(herd, "cria"))

    herd.kill("supervisor")
    herd.eventually(lambda: herd.cli("load", "cria").returncode == 0, within_s=20, what="the supervisor is back")

    assert herd.chat("cria", "hello", max_tokens=1).status_code == 200
    assert router_of(herd).pid == router
    assert [fact["type"] for fact in facts(herd, "cria")[count:] if "measured" not in fact["type"]] == []


def test_a_load_that_fails_in_the_router_is_told_with_its_own_lines(herd: Herd) -> None:
    loaded = herd.cli("load", "odd")

    assert loaded.returncode != 0
    failed = facts(herd, "odd")[-1]
    assert failed["type"] == "instance.failed.v1"
    assert any("error loading model" in line for line in failed["last_lines"])
    assert not any(line.startswith("[") for line in failed["last_lines"])
    assert herd.chat("cria", "hello", max_tokens=1).status_code == 200


def test_stopping_the_herd_leaves_no_process(herd: Herd) -> None:
    herd.chat("cria", "hello", max_tokens=1)

    assert herd.stop() == 0

    assert herd.processes() == []

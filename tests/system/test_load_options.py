"""What a model is loaded with, on the real llama-server: by Ollama's client, by the command line, by llamaherd.yaml."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ollama
import pytest

from harness.herd import Herd, llama_server_or_none
from llamaherd_shared.model_options import FLAGS, OWNED

WHO = [{"role": "user", "content": "Who are you?"}]
LONG = [{"role": "user", "content": "llama " * 300}]


@pytest.fixture
def model(herd: Herd) -> Iterator[str]:
    """A copy of the demo model, for a test to load as it likes."""
    path = herd.models_dir / "sized.gguf"
    shutil.copyfile(herd.models_dir / "cria.gguf", path)
    herd.eventually(
        lambda: "sized" in {entry["model"] for entry in herd.fleet()["models"]}, within_s=15, what="it is found"
    )
    yield "sized"
    herd.cli("unload", "sized")
    path.unlink()


def instance_of(herd: Herd, model: str) -> Any:
    (found,) = [entry["instance"] for entry in herd.fleet()["models"] if entry["model"] == model]
    return found


def test_num_ctx_is_the_context_of_the_answer(herd: Herd, model: str) -> None:
    with ollama.Client(host=herd.gateway_url, timeout=60) as client:

        def context_length() -> int | None:
            (loaded,) = [each for each in client.ps().models if each.name == f"{model}:latest"]
            return loaded.context_length

        short = {"temperature": 0, "num_ctx": 256}
        assert client.chat(model, WHO, options=short).message.content
        assert context_length() == 256
        with pytest.raises(ollama.ResponseError):
            client.generate(model, LONG[0]["content"], options=short, raw=True)

        assert client.generate(model, LONG[0]["content"], options={"num_ctx": 1024}, raw=True).done
        assert context_length() == 1024
        generation = instance_of(herd, model)["generation"]
        assert client.chat(model, WHO, options=short).message.content
        assert client.chat(model, WHO, options={"num_ctx": 10**6}).message.content
        assert context_length() == 2048, "what it was trained with"

    loaded = instance_of(herd, model)
    assert loaded["generation"] == generation + 1, "the shorter one was answered by what was there"
    assert loaded["options"]["context_tokens"] == 2048


def test_a_model_is_loaded_from_the_command_line_with_options(herd: Herd, model: str) -> None:
    command = ["load", model, "--context", "128", "--slots", "3", "--flash-attention", "on", "--option"]
    loaded = herd.cli(*command, "cache_type_v=q8_0", "--json")

    assert loaded.returncode == 0, loaded.stderr
    instance = json.loads(loaded.stdout)["instance"]
    # llama-server makes contexts of 256 tokens and their multiples.
    assert (instance["slots"], instance["context_tokens"]) == (3, 256)
    assert instance["options"] == {
        "context_tokens": 128,
        "slots": 3,
        "flash_attention": True,
        "cache_type_v": "q8_0",
    }
    assert "cache_type_v" in herd.cli("ps").stdout
    again = json.loads(herd.cli("load", model, "--slots", "2", "--json").stdout)
    assert again["instance"]["generation"] == instance["generation"], "three slots are enough"
    refused = herd.cli("load", model, "--slots", "0")
    assert (refused.returncode, refused.stderr.strip()) == (2, "error: slots: expected `int` >= 1")


def test_what_the_configuration_says_reaches_llama_server(tmp_path: Path) -> None:
    if llama_server_or_none() is None:
        pytest.skip("no llama-server")
    config = tmp_path / "llamaherd.yaml"
    config.write_text("models:\n  '*': {context_tokens: 512, slots: 2}\n  cria: {aliases: [gpt-4o], ttl_s: 600}\n")
    herd = Herd(tmp_path, "--demo", "--config", str(config)).start()
    try:
        instance = instance_of(herd, "cria")
        assert (instance["slots"], instance["context_tokens"]) == (2, 512)
        with ollama.Client(host=herd.gateway_url, timeout=60) as client:
            assert client.chat("gpt-4o", WHO).message.content

        other = tmp_path / "other.yaml"
        other.write_text("models: {cria: {slots: 3, context_tokens: 512}}\n")
        foreseen = herd.cli("reload", "--file", str(other))
        assert foreseen.stdout.split() == "cria/0 would start again: slots: 2 -> 3".split()
        other.write_text("models: {cria: {slots: 0}}\n")
        refused = herd.cli("reload", "--file", str(other))
        assert (refused.returncode, "setting `models.cria.slots`: expected `int` >= 1" in refused.stderr) == (1, True)

        config.write_text("models: {cria: {slots: 1, context_tokens: 512, aliases: [gpt-5]}}\n")
        herd.eventually(
            lambda: (found := instance_of(herd, "cria"))["state"] == "ready" and found["slots"] == 1,
            within_s=20,
            what="it has started again with one slot",
        )
        assert herd.cli("reload", "--dry-run").stdout.strip() == "nothing would have to start again"
        with ollama.Client(host=herd.gateway_url, timeout=60) as client:
            assert client.chat("gpt-5", WHO).message.content
    finally:
        herd.stop()


def test_every_flag_is_one_of_llama_servers() -> None:
    program = llama_server_or_none()
    if program is None:
        pytest.skip("no llama-server")
    text = subprocess.run([program, "--help"], capture_output=True, text=True, check=True).stdout
    known = {word.strip(",") for line in text.splitlines() if line.startswith("-") for word in line.split()}

    ours = {word for flag in FLAGS.values() for word in (*flag.on, *flag.off)}
    assert ours - known == set()
    assert OWNED - known == set()

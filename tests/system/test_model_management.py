"""Models that are made, copied and deleted by the unmodified `ollama` package on a whole herd."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import ollama
import pytest

from harness.herd import Herd
from harness.scripted_gguf import write_scripted_gguf

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def client(herd: Herd) -> Iterator[ollama.Client]:
    with ollama.Client(host=herd.gateway_url, timeout=60) as client:
        yield client
        for name in ("pirate", "pirate:v2", "scripted-here:v1"):
            with contextlib.suppress(ollama.ResponseError):
                client.delete(name)


def test_a_model_of_cria_says_what_it_was_made_for(herd: Herd, client: ollama.Client) -> None:
    client.create("pirate", from_="cria", system="You are a pirate.", parameters={"num_predict": 3, "temperature": 0})
    plain, made = client.chat("cria", HELLO, options={"temperature": 0}), client.chat("pirate", HELLO)
    openai = herd.chat("pirate", "hello").json()
    native = {"model": "pirate", "messages": HELLO}
    prompt = httpx.post(f"{herd.gateway_url}/apply-template", json=native, timeout=30).json()["prompt"]

    assert (made.prompt_eval_count or 0) > (plain.prompt_eval_count or 0)
    assert (made.eval_count, made.done_reason) == (3, "length")
    assert openai["usage"]["prompt_tokens"] == made.prompt_eval_count
    assert openai["usage"]["completion_tokens"] == 3
    assert "You are a pirate." in prompt


def test_other_names_do_not_disturb_the_pages(herd: Herd, client: ollama.Client) -> None:
    client.copy("cria", "pirate:v2")

    listed = herd.cli("models", "--json")
    events = herd.cli("events")

    assert listed.returncode == 0, listed.stderr
    assert "pirate:v2" not in json.dumps(herd.fleet())
    assert "pirate:v2" not in listed.stdout
    assert events.returncode == 0, events.stderr
    assert "alias.set.v1" in events.stdout
    assert "pirate:v2" in events.stdout
    assert "pirate:v2" in [model.model for model in client.list().models]


def test_a_file_that_was_sent_is_served_and_deleted(herd: Herd, client: ollama.Client, tmp_path: Path) -> None:
    path = write_scripted_gguf(tmp_path / "scripted.gguf")
    name = "scripted-here:v1"

    client.create(name, files={"scripted.gguf": client.create_blob(path)})
    answer = client.chat(name, HELLO, options={"temperature": 0}, keep_alive="300ms").message.content
    file = herd.models_dir / "scripted-here-v1.gguf"
    assert (answer, file.stat().st_size) == ("Hello there, friend.", path.stat().st_size)

    herd.eventually(
        lambda: herd.instance("scripted-here-v1").get("state") == "stopped", within_s=10, what="it is unloaded"
    )
    client.delete(name)
    assert not file.exists()

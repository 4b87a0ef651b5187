"""Models that come, get other names and go, through the gateway and the unmodified `ollama` client."""

import asyncio
import contextlib
import json
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest

from harness.deadline import wait_until
from harness.disk import fill
from harness.managed_herd import ManagedHerd, digest_of, managed_herd, records_of
from harness.nats import NatsServer

BY_SETTINGS = "by-settings"


@pytest.fixture(scope="module")
def herd(tmp_path_factory: pytest.TempPathFactory, shared_nats_server: NatsServer) -> Iterator[ManagedHerd]:
    aliases = {"fixed": BY_SETTINGS, "claude-*": BY_SETTINGS}
    with managed_herd(tmp_path_factory.mktemp("managed"), shared_nats_server, aliases=aliases) as herd:
        yield herd


@pytest.fixture
def client(herd: ManagedHerd) -> ollama.Client:
    return herd.client


def refused(action: Callable[[], object]) -> tuple[int, str]:
    """Status and words of a refusal."""
    with pytest.raises(ollama.ResponseError) as caught:
        action()
    return caught.value.status_code, caught.value.error


# Pull.


def test_a_pull_tells_its_progress_as_ollama_does(herd: ManagedHerd) -> None:
    repository, stem = herd.add_repository("Q8_0")
    data = herd.hub.files[repository][f"{stem}-Q8_0.gguf"]

    with herd.http.stream("POST", "/api/pull", json={"model": f"hf.co/{repository}:Q8_0"}) as response:
        assert response.status_code == 200
        told = records_of(response)

    digest = digest_of(data)
    fetching = [record for record in told if record["status"] == f"pulling {digest[7:19]}"]
    assert all(record["digest"] == digest and record["total"] == len(data) for record in fetching)
    assert fetching[-1]["completed"] == len(data)
    assert [record["status"] for record in told if record not in fetching] == [
        "pulling manifest",
        "verifying sha256 digest",
        "writing manifest",
        "removing unused layers",
        "success",
    ]
    assert told[1 : 1 + len(fetching)] == fetching


def test_a_pulled_model_answers_to_the_name_it_was_pulled_by(herd: ManagedHerd, client: ollama.Client) -> None:
    repository, stem = herd.add_repository("Q8_0", "Q4_0")

    plain = client.pull(f"{repository}:q4_0")
    (*_, last) = client.pull(f"hf.co/{repository}", stream=True)

    assert plain.status == last.status == "success"
    for name, model in ((f"{repository}:q4_0", f"{stem}-Q4_0"), (f"hf.co/{repository}", f"{stem}-Q8_0")):
        assert client.chat(name, [{"role": "user", "content": "hello"}]).model == name
        assert client.show(name).modelfile == client.show(model).modelfile
        assert {name, model} <= set(herd.names()) & set(herd.names(herd.other))


def test_a_name_a_model_was_pulled_by_takes_its_file_with_it(herd: ManagedHerd, client: ollama.Client) -> None:
    repository, stem = herd.add_repository("Q8_0")
    model, name = f"{stem}-Q8_0", f"hf.co/{repository}"
    client.pull(name)
    client.copy(name, f"{stem}-kept")

    client.delete(name)
    assert client.show(f"{stem}-kept").details.parent_model == model
    client.delete(f"{stem}-kept")
    assert model in herd.names(), "it was not pulled under that name"
    client.pull(name)
    client.delete(model)

    assert not {model, name, f"{stem}-kept"} & set(herd.names())
    assert not list(herd.node.models_dir.rglob(f"{model}*"))


def test_a_model_that_is_here_needs_no_repository(herd: ManagedHerd, client: ollama.Client) -> None:
    model = herd.add_model()

    assert [record.status for record in client.pull(f"{model}:latest", stream=True)] == ["pulling manifest", "success"]
    status, words = refused(lambda: client.pull("nothing-of-that-name"))
    assert (status, "names no repository: use hf.co/OWNER/NAME" in words) == (400, True)


@pytest.mark.parametrize("stream", [False, True])
def test_a_pull_that_cannot_begin_has_a_status_that_says_so(herd: ManagedHerd, stream: bool) -> None:
    repository, _ = herd.add_repository("Q8_0", "Q6_K", "Q5_K_M")

    def ask(name: str) -> tuple[int, str]:
        answer = herd.http.post("/api/pull", json={"model": name, "stream": stream})
        return answer.status_code, answer.json()["error"]

    assert ask("maker/Nothing") == (404, "127.0.0.1 has no repository maker/Nothing at main")
    status, words = ask(f"{repository}:Q2_K")
    assert (status, words) == (404, f"{repository} has no Q2_K; it has Q5_K_M, Q6_K, Q8_0")
    herd.hub.files[repository].pop(next(name for name in herd.hub.files[repository] if "Q8_0" in name))
    status, words = ask(repository)
    assert (status, words) == (400, f"{repository} has more than one model that fits: name one of Q5_K_M, Q6_K")
    herd.hub.switches.token = "hf_secret"
    status, words = ask(repository)
    assert (status, "hub_token" in words) == (400, True)
    herd.hub.switches.token = ""
    herd.hub.switches.refuse_listing = [(503, {})] * 3
    status, words = ask(repository)
    assert (status, "(503)" in words) == (503, True)


def test_a_pull_that_fails_on_its_way_ends_its_stream_with_the_reason(herd: ManagedHerd) -> None:
    repository, _ = herd.add_repository("Q8_0", announced_sha256="0" * 64)

    with herd.http.stream("POST", "/api/pull", json={"model": repository}) as response:
        told = records_of(response)
        assert response.status_code == 200
    plain = herd.http.post("/api/pull", json={"model": repository, "stream": False})

    assert told[0] == {"status": "pulling manifest"}
    assert list(told[-1]) == ["error"]
    assert plain.status_code == 400
    assert plain.json() == told[-1]
    assert repository not in herd.names()


def test_a_client_that_leaves_does_not_end_the_pull(herd: ManagedHerd) -> None:
    repository, stem = herd.add_repository("Q8_0", hold_after=1000)

    with herd.http.stream("POST", "/api/pull", json={"model": repository}) as response:
        assert next(response.iter_lines()) == '{"status":"pulling manifest"}'
    herd.hub.go_on.set()

    wait_until(lambda: {f"{stem}-Q8_0", repository} <= set(herd.names()), what="the model has come")


def test_a_pull_whose_supervisor_is_killed_ends_once_that_is_known(herd: ManagedHerd) -> None:
    repository, _ = herd.add_repository("Q8_0", hold_after=1000)

    with herd.http.stream("POST", "/api/pull", json={"model": repository}) as response:
        lines = response.iter_lines()
        assert next(lines) == '{"status":"pulling manifest"}'
        herd.node.kill()
        herd.hub.go_on.set()
        herd.node.start()
        (*_, last) = lines

    assert "pull again to go on where it stopped" in json.loads(last)["error"]
    herd.hub.switches.hold_after = None
    again = {"model": repository, "stream": False}
    wait_until(lambda: herd.http.post("/api/pull", json=again).status_code == 200, what="the supervisor is back")
    assert repository in herd.names()


# Create from a model.


def test_a_model_made_of_another_speaks_as_it_was_told_in_every_dialect(
    herd: ManagedHerd, client: ollama.Client
) -> None:
    model, name = herd.add_model(), f"{herd.new_name()}:v1"
    options = {"temperature": 0.25, "top_k": 7, "stop": ["END"], "num_predict": 6}
    made = list(client.create(name, from_=model, system="Be a pirate.", parameters=options, stream=True))
    hello = [{"role": "user", "content": "hello"}]

    assert [record.status for record in made[1:]] == ["writing manifest", "success"]
    assert str(made[0].status).startswith("using existing layer sha256:")
    asked: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"messages": hello},
        "/v1/responses": {"input": "hello"},
        "/v1/messages": {"messages": hello, "max_tokens": 9},
        "/api/chat": {"messages": hello, "stream": False},
        "/api/generate": {"prompt": "hello", "stream": False},
        "/api/v1/chat": {"input": "hello"},
        "/api/v0/chat/completions": {"messages": hello},
        "/v1/completions": {"prompt": "hello"},
    }
    for path, body in asked.items():
        answer = herd.http.post(path, json={"model": name.upper(), **body})
        assert answer.status_code == 200, (path, answer.text)
        seen = herd.state(model)["body"]
        if path != "/v1/completions":
            assert seen["messages"][0] == {"role": "system", "content": "Be a pirate."}, path
            assert [message["role"] for message in seen["messages"]] == ["system", "user"], path
        assert (seen["temperature"], seen["top_k"], seen["stop"]) == (0.25, 7, ["END"]), path
        limit = seen.get("n_predict", seen.get("max_tokens"))
        assert limit == (9 if path == "/v1/messages" else 6), path


def test_what_a_request_says_itself_counts(herd: ManagedHerd, client: ollama.Client) -> None:
    model, name = herd.add_model(), herd.new_name()
    client.create(name, from_=model, system="Be a pirate.", parameters={"temperature": 0.25, "top_k": 7})
    monk = [{"role": "system", "content": "Be a monk."}, {"role": "user", "content": "hello"}]

    client.chat(name, monk, options={"temperature": 1})
    by_ollama = herd.state(model)["body"]
    herd.http.post("/v1/chat/completions", json={"model": name, "messages": monk, "temperature": 1})
    by_openai = herd.state(model)["body"]
    herd.chat(model)
    plain = herd.state(model)["body"]

    for seen in (by_ollama, by_openai):
        assert [message["content"] for message in seen["messages"]] == ["Be a monk.", "hello"]
        assert (seen["temperature"], seen["top_k"]) == (1, 7)
    assert len(plain["messages"]) == 1
    assert not {"temperature", "top_k"} & set(plain)


def test_a_made_model_is_shown_with_what_it_was_made_of(herd: ManagedHerd, client: ollama.Client) -> None:
    model, name = herd.add_model(), herd.new_name()
    example = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Arr."}]
    options = {"temperature": 0.25, "stop": ["END", "FIN"], "num_ctx": 2048}
    client.create(name, from_=model, system="Be a pirate.", parameters=options, messages=example)

    shown = herd.http.post("/api/show", json={"name": f"{name}:latest"}).json()

    assert shown["system"] == "Be a pirate."
    assert shown["details"]["parent_model"] == model
    assert shown["messages"] == example
    assert [line.split() for line in shown["parameters"].splitlines()] == [
        ["temperature", "0.25"],
        ["stop", '"END"'],
        ["stop", '"FIN"'],
        ["num_ctx", "2048"],
    ]
    lines = shown["modelfile"].splitlines()
    assert lines[0] == f"FROM {model}:latest"
    assert {'SYSTEM """Be a pirate."""', "PARAMETER temperature 0.25", 'MESSAGE assistant """Arr."""'} <= set(lines)
    assert client.chat(name, [{"role": "user", "content": "hello"}]).done
    assert [message["content"] for message in herd.state(model)["body"]["messages"]] == [
        "Be a pirate.",
        "hi",
        "Arr.",
        "hello",
    ]


def test_a_made_model_passes_on_what_it_has_and_is_made_anew(herd: ManagedHerd, client: ollama.Client) -> None:
    model, name, child = herd.add_model(), herd.new_name(), herd.new_name()
    client.create(name, from_=model, system="Be a pirate.", parameters={"temperature": 0.25})
    client.create(child, from_=name, parameters={"top_k": 7})
    client.create(name, from_=model, system="Be a monk.")

    assert client.show(child).modelfile is not None
    shown = herd.http.post("/api/show", json={"model": child}).json()
    assert (shown["system"], shown["parameters"].split()) == ("Be a pirate.", ["temperature", "0.25", "top_k", "7"])
    shown = herd.http.post("/api/show", json={"model": name}).json()
    assert (shown["system"], "parameters" in shown) == ("Be a monk.", False)


def test_a_model_can_be_given_settings_under_its_own_name(herd: ManagedHerd, client: ollama.Client) -> None:
    model, other = herd.add_model(), herd.add_model()
    client.create(model, from_=model, system="Be a pirate.")
    herd.chat(model)

    assert herd.state(model)["body"]["messages"][0]["content"] == "Be a pirate."
    status, words = refused(lambda: client.create(model, from_=other))
    assert status == 400
    assert words == f"{model!r} is the name of a model's file and cannot mean another model: delete that one first"
    client.delete(model)
    assert model not in herd.names()


def test_a_model_can_be_made_of_a_repository_that_is_pulled_for_it(herd: ManagedHerd, client: ollama.Client) -> None:
    repository, stem = herd.add_repository("Q8_0")
    name = herd.new_name()

    told = [record.status for record in client.create(name, from_=f"hf.co/{repository}", system="Hi", stream=True)]

    assert (told[0], told[-2:]) == ("pulling manifest", ["writing manifest", "success"])
    assert client.show(name).details.parent_model == f"{stem}-Q8_0"


def test_what_is_being_made_is_made_for_a_client_that_has_left_too(herd: ManagedHerd) -> None:
    repository, _ = herd.add_repository("Q8_0", hold_after=1000)
    name = herd.new_name()
    body = {"model": name, "from": repository, "system": "Be a pirate."}

    with herd.http.stream("POST", "/api/create", json=body) as response:
        assert next(response.iter_lines()) == '{"status":"pulling manifest"}'
    herd.hub.go_on.set()

    wait_until(lambda: name in herd.names(), what="it is made")
    assert herd.http.post("/api/show", json={"model": name}).json()["system"] == "Be a pirate."


def test_what_cannot_be_made_is_refused_in_words(herd: ManagedHerd, client: ollama.Client) -> None:
    model, name = herd.add_model(), herd.new_name()
    create = client.create

    assert refused(lambda: create(name)) == (400, "neither 'from' or 'files' was specified")
    assert refused(lambda: create(name, from_="nothing")) == (404, "model 'nothing' not found")
    status, words = refused(lambda: create(name, from_=model, template="{{ .Prompt }}"))
    assert (status, words.startswith("`template` cannot be served")) == (400, True)
    wrong = {"top_k": "many"}
    assert refused(lambda: create(name, from_=model, parameters=wrong)) == (
        400,
        'option "top_k" must be of type integer',
    )
    assert refused(lambda: create("fixed", from_=model))[0] == 400
    status, words = refused(lambda: create("claude-*", from_=model))
    assert (status, "stand for many" in words) == (400, True)
    blob = digest_of(b"never sent")
    assert refused(lambda: create(name, files={"m.gguf": blob})) == (404, f"blob {blob} was not sent to this gateway")
    assert refused(lambda: create(name, files={"m.safetensors": blob}))[0] == 400
    assert refused(lambda: create(name, files={"m.gguf": "sha256:1"}))[0] == 400
    assert name not in herd.names()


# Create from a file.


def blobs_of(herd: ManagedHerd) -> list[str]:
    return sorted(path.name for path in (herd.gateway.folder / "blobs").glob("*"))


def send(herd: ManagedHerd, tmp_path: Path, data: bytes) -> str:
    path = tmp_path / "sent.gguf"
    path.write_bytes(data)
    return herd.client.create_blob(path)


def test_a_file_that_is_sent_becomes_a_model(herd: ManagedHerd, client: ollama.Client, tmp_path: Path) -> None:
    name, data = herd.new_name(), herd.new_content()
    digest = send(herd, tmp_path, data)
    assert digest == digest_of(data)
    assert blobs_of(herd) == [digest[7:]]
    assert herd.http.head(f"/api/blobs/{digest}").status_code == 200

    told = list(client.create(name, files={"sent.gguf": digest}, stream=True))

    assert [told[0].status, *(record.status for record in told[-2:])] == ["parsing GGUF", "writing manifest", "success"]
    coming = told[1:-2]
    assert {record.status for record in coming} == {f"creating new layer {digest}"}
    assert coming[-1].completed == coming[-1].total == len(data)
    assert (herd.node.models_dir / f"{name}.gguf").read_bytes() == data
    assert herd.chat(name).status_code == 200
    assert blobs_of(herd) == [], "the model has it now"


def test_content_that_a_model_has_need_not_be_sent_again(
    herd: ManagedHerd, client: ollama.Client, tmp_path: Path
) -> None:
    first, second = herd.new_name(), herd.new_name()
    data = herd.new_content()
    digest = send(herd, tmp_path, data)
    client.create(first, files={"m.gguf": digest})

    assert httpx.head(f"{herd.other.url}/api/blobs/{digest}").status_code == 200, "any gateway knows"
    assert send(herd, tmp_path, data) == digest
    assert blobs_of(herd) == []
    client.create(second, files={"m.gguf": digest}, system="Be a pirate.")
    client.create(first, files={"m.gguf": digest}, system="Be a monk.")

    assert client.show(second).details.parent_model == first
    assert client.chat(first, [{"role": "user", "content": "hello"}]).done
    assert herd.state(first)["body"]["messages"][0]["content"] == "Be a monk."
    client.create(first, files={"m.gguf": digest})
    assert "system" not in herd.http.post("/api/show", json={"model": first}).json()


def test_a_name_with_a_tag_gets_a_file_of_another_name(
    herd: ManagedHerd, client: ollama.Client, tmp_path: Path
) -> None:
    stem = herd.new_name()
    first, second = herd.new_content(), herd.new_content()
    client.create(f"me/{stem}:v1", files={"m.gguf": send(herd, tmp_path, first)}, parameters={"top_k": 7})
    file = herd.node.models_dir / f"me-{stem}-v1.gguf"
    assert file.read_bytes() == first
    assert client.chat(f"me/{stem}:v1", [{"role": "user", "content": "hello"}]).done

    client.create(f"me/{stem}:v1", files={"m.gguf": send(herd, tmp_path, second)})
    assert file.read_bytes() == second
    client.delete(f"me/{stem}:v1")

    assert not file.exists()
    assert not [name for name in herd.names() if stem in name]


def test_a_model_made_anew_takes_the_place_of_the_one_in_memory(
    herd: ManagedHerd, client: ollama.Client, tmp_path: Path
) -> None:
    name = herd.new_name()
    client.create(name, files={"m.gguf": send(herd, tmp_path, herd.new_content())})
    herd.chat(name)
    before = herd.state(name)["pid"]

    client.create(name, files={"m.gguf": send(herd, tmp_path, herd.new_content())})
    herd.until_unloaded(name)
    herd.chat(name)

    assert herd.state(name)["pid"] != before


def test_a_file_with_another_name_too_is_not_replaced(herd: ManagedHerd, client: ollama.Client, tmp_path: Path) -> None:
    name, copy = herd.new_name(), herd.new_name()
    first, second = herd.new_content(), herd.new_content()
    client.create(f"{name}:v1", files={"m.gguf": send(herd, tmp_path, first)})
    client.copy(f"{name}:v1", copy)

    client.create(f"{name}:v1", files={"m.gguf": send(herd, tmp_path, second)})

    assert (herd.node.models_dir / f"{name}-v1.gguf").read_bytes() == first
    assert (herd.node.models_dir / f"{name}-v1-2.gguf").read_bytes() == second
    assert client.show(copy).details.parent_model == f"{name}-v1"
    assert client.show(f"{name}:v1").details.parent_model == f"{name}-v1-2"


def test_a_file_that_is_no_model_is_refused(herd: ManagedHerd, client: ollama.Client, tmp_path: Path) -> None:
    name = herd.new_name()
    text, cut = send(herd, tmp_path, b"no model"), send(herd, tmp_path, herd.new_content()[:5000])

    status, words = refused(lambda: client.create(name, files={"m.gguf": text}))
    assert (status, "is not a GGUF file" in words) == (400, True)
    status, words = refused(lambda: client.create(name, files={"m.gguf": cut}))
    assert status == 400
    with herd.http.stream("POST", "/api/create", json={"model": name, "files": {"m.gguf": cut}}) as response:
        told = records_of(response)
    assert told[-1] == {"error": words}
    assert name not in herd.names()
    for digest in (text, cut):
        (herd.gateway.folder / "blobs" / digest[7:]).unlink()


def test_an_upload_is_kept_only_whole_and_under_its_own_digest(herd: ManagedHerd) -> None:
    data = herd.new_content()
    digest, url = digest_of(data), f"/api/blobs/{digest_of(data)}"

    def pieces() -> Iterator[bytes]:
        for at in range(0, len(data), 7000):
            yield data[at : at + 7000]

    wrong = herd.http.post(url, content=data + b"x")
    assert wrong.status_code == 400
    assert wrong.json()["error"].startswith(f"digest mismatch, expected {digest!r}, got 'sha256:")
    assert herd.http.post("/api/blobs/sha256:1", content=b"x").status_code == 400
    assert herd.http.head(url).status_code == 404
    assert blobs_of(herd) == []

    with socket.create_connection(("127.0.0.1", herd.gateway.port)) as half:
        half.sendall(f"POST {url} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\nhalf".encode())
        wait_until(lambda: blobs_of(herd), what="it has begun")
    wait_until(lambda: not blobs_of(herd), what="nothing is left of a client that has gone")

    chunked = herd.http.post(url, content=pieces(), headers={"content-type": "application/json"})
    again = herd.http.post(url, content=data)
    assert (chunked.status_code, again.status_code) == (201, 200)
    assert herd.http.head(url).status_code == 200
    assert herd.http.get(f"/internal/blobs/{digest}").status_code == 404, "a supervisor has a ticket"
    (herd.gateway.folder / "blobs" / digest[7:]).unlink()


def test_the_async_client_sends_a_file_too(herd: ManagedHerd, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(herd.new_content())
    name = herd.new_name()

    async def make() -> None:
        async with ollama.AsyncClient(herd.gateway.url) as client:
            await client.create(name, files={"m.gguf": await client.create_blob(path)})

    asyncio.run(make())

    assert name in herd.names()


def test_a_full_disk_is_told_in_one_sentence_and_nothing_is_left_behind(herd: ManagedHerd, small_disk: Path) -> None:
    blobs = herd.gateway.folder / "blobs"
    shutil.rmtree(blobs, ignore_errors=True)
    blobs.symlink_to(small_disk)
    data = b"GGUF" + bytes(2**21)
    try:
        answer = herd.http.post(f"/api/blobs/{digest_of(data)}", content=data)
        left = list(small_disk.iterdir())
        filler = fill(small_disk)
        full = herd.http.post(f"/api/blobs/{digest_of(b'x')}", content=b"x")
        filler.unlink()
        again = herd.http.post(f"/api/blobs/{digest_of(b'x')}", content=b"x")
    finally:
        blobs.unlink()

    assert (answer.status_code, full.status_code, again.status_code) == (503, 503, 201)
    assert answer.json() == {"error": "the file cannot be kept on the gateway's disk: no space left on device"}
    assert left == []


# Copy and delete.


def test_a_copy_answers_keeps_what_it_was_given_and_survives(herd: ManagedHerd, client: ollama.Client) -> None:
    model, name, copy = herd.add_model(), herd.new_name(), f"me/{herd.new_name()}:v2"
    client.create(name, from_=model, system="Be a pirate.")
    assert client.copy(name, copy).status == "success"
    client.delete(name)

    answer = httpx.post(f"{herd.other.url}/api/chat", json={"model": copy, "messages": [], "stream": False}, timeout=20)
    assert answer.json()["done_reason"] == "load"
    httpx.post(f"{herd.other.url}/api/generate", json={"model": copy, "prompt": "hello", "stream": False}, timeout=20)
    assert herd.state(model)["body"]["messages"][0]["content"] == "Be a pirate.", "every gateway knows it"

    herd.gateway.stop()
    shutil.rmtree(herd.gateway.folder / "projections")
    herd.gateway.start()
    herd.chat(copy)
    assert herd.state(model)["body"]["messages"][0]["content"] == "Be a pirate.", "the log knows it"
    herd.gateway.stop()
    herd.gateway.start()
    assert copy in herd.names()
    assert name not in herd.names()


def test_two_gateways_agree_on_a_name_that_both_were_told(herd: ManagedHerd) -> None:
    models, name = [herd.add_model(), herd.add_model()], herd.new_name()

    async def tell() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=20) as client:
            bodies = [{"source": model, "destination": name} for model in models * 4]
            urls = [herd.gateway.url, herd.other.url] * 4
            asking = [client.post(f"{url}/api/copy", json=body) for url, body in zip(urls, bodies, strict=True)]
            return await asyncio.gather(*asking)

    answers = asyncio.run(tell())
    assert {answer.status_code for answer in answers} <= {200, 409}

    def meant(url: str) -> str:
        shown = httpx.post(f"{url}/api/show", json={"model": name}, timeout=20)
        parent: str = shown.raise_for_status().json()["details"]["parent_model"]
        return parent

    wait_until(lambda: meant(herd.gateway.url) == meant(herd.other.url), what="they agree")


def test_what_is_not_there_is_not_copied_or_deleted(herd: ManagedHerd, client: ollama.Client) -> None:
    herd.node.add_model(BY_SETTINGS)
    wait_until(lambda: BY_SETTINGS in herd.names(), what="the model is known")

    assert refused(lambda: client.copy("nothing", "anything")) == (404, 'model "nothing" not found')
    assert refused(lambda: client.delete("nothing")) == (404, "model 'nothing' not found")
    assert refused(lambda: client.delete("claude-3"))[0] == 404, "a pattern's model is not meant"
    assert refused(lambda: client.copy("claude-3", "anything"))[0] == 404
    status, words = refused(lambda: client.delete("fixed"))
    assert (status, "gateway.aliases" in words) == (400, True)
    assert herd.http.request("DELETE", "/api/delete", json={}).json() == {"error": "model is required"}
    assert BY_SETTINGS in herd.names()


def test_a_model_with_other_names_is_not_deleted_from_under_them(herd: ManagedHerd, client: ollama.Client) -> None:
    model, name = herd.add_model(), herd.new_name()
    client.copy(model, name)

    assert refused(lambda: client.delete(model)) == (
        409,
        f"the model {model!r} is also called {name!r}: delete that first",
    )
    client.delete(name)
    client.delete(model.upper())

    assert model not in herd.names()
    assert not (herd.node.models_dir / f"{model}.gguf").exists()


def test_a_loaded_model_is_deleted_once_its_answer_is_out(herd: ManagedHerd, client: ollama.Client) -> None:
    model = herd.add_model(tokens=4, delay_token_s=0.15)

    async def delete_while_it_answers() -> httpx.Response:
        async with httpx.AsyncClient(base_url=herd.gateway.url, timeout=20) as http:
            body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
            answering = asyncio.create_task(http.post("/v1/chat/completions", json=body))
            await asyncio.to_thread(herd.until_busy, model)
            deleted = await http.request("DELETE", "/api/delete", json={"model": model})
            assert deleted.status_code == 200
            assert deleted.content == b""
            return await answering

    answer = asyncio.run(delete_while_it_answers())

    assert answer.json()["choices"][0]["message"]["content"] == "tok0 tok1 tok2 tok3"
    assert not herd.is_loaded(model)
    assert refused(lambda: client.show(model)) == (404, f"model '{model}' not found")


def test_openais_clients_delete_too(herd: ManagedHerd, client: ollama.Client) -> None:
    repository, stem = herd.add_repository("Q8_0")
    client.pull(repository)

    unknown = herd.http.delete("/v1/models/nothing")
    answer = herd.http.delete(f"/v1/models/{repository.replace('/', '%2F')}")

    assert unknown.status_code == 404
    assert unknown.json()["error"]["code"] == "model_not_found"
    assert answer.json() == {"id": repository, "object": "model", "deleted": True}
    assert f"{stem}-Q8_0" not in herd.names()


# Show.


def test_a_model_is_shown_with_all_that_its_file_says(herd: ManagedHerd) -> None:
    model = herd.add_model()

    short = herd.http.post("/api/show", json={"model": model}).json()
    verbose = herd.http.post("/api/show", json={"model": model, "verbose": True}).json()

    assert short["details"] == {
        "parent_model": "",
        "format": "gguf",
        "family": "llama",
        "families": ["llama"],
        "parameter_size": short["details"]["parameter_size"],
        "quantization_level": "F32",
        "context_length": 512,
    }
    assert short["template"].startswith("{% for message in messages %}")
    assert short["capabilities"] == ["completion"]
    assert short["model_info"]["general.architecture"] == "llama"
    assert short["model_info"]["llama.context_length"] == 512
    assert short["model_info"]["tokenizer.ggml.tokens"] == []
    assert {"name": "output.weight", "type": "F32", "shape": [16, 260]} in short["tensors"]
    assert short["modelfile"].startswith(f"FROM {model}:latest\nTEMPLATE ")
    assert short["modified_at"].endswith("Z")
    assert len(verbose["model_info"]["tokenizer.ggml.tokens"]) == 260
    assert not herd.is_loaded(model)


def test_a_supervisor_that_is_away_is_told(herd: ManagedHerd, client: ollama.Client) -> None:
    model = herd.add_model()
    herd.node.stop()
    try:
        statuses = {
            path: herd.http.post(path, json=body).status_code
            for path, body in (
                ("/api/pull", {"model": "maker/Any"}),
                ("/api/show", {"model": model}),
                ("/api/v1/models/download", {"model": "maker/Any"}),
            )
        }
    finally:
        herd.node.start()
        wait_until(lambda: model in herd.names(), what="the supervisor is back")

    assert statuses == {"/api/pull": 503, "/api/show": 404, "/api/v1/models/download": 503}
    with contextlib.suppress(ollama.ResponseError):
        client.delete(model)

"""Every curl line of docs/api.md, run against a demo herd, is answered as the page says."""

import json
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import httpx
import pytest

from harness.curl import Answer, parse_line, run_httpx, run_line
from harness.fake_hub import FakeHub
from harness.generators import DOCS, load_generator
from harness.herd import Herd
from harness.random_gguf import write_random_gguf
from harness.scripted_gguf import write_scripted_gguf

api = load_generator("api")

LINES: list[str] = api.curl_lines(api.PAGE.read_text())
STATUS: dict[str, int] = {entry.line: entry.status for entry in api.entries()}
"""By line; those that were written by hand are answered with 200."""

REPOSITORY, QUANTIZATION, PULLED = "ggml-org/gemma-3-270m-it-GGUF", "Q8_0", "gemma-3-270m-it-Q8_0"
CRIA = {"model": "cria"}


@pytest.fixture(scope="module")
def herd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Herd]:
    """One of this module's own: lines pull, make and delete models. `listener` and `decider` are none of the kind."""
    folder = tmp_path_factory.mktemp("api")
    with FakeHub() as hub:
        hub.files[REPOSITORY] = {f"{PULLED}.gguf": write_random_gguf(folder / "hub.gguf").read_bytes()}
        running = Herd(folder, "--demo", environ={"LLAMAHERD_SUPERVISOR_HUB_URL": hub.url})
        for name in ("coder", "listener", "decider"):
            write_scripted_gguf(running.models_dir / f"{name}.gguf")
        for name, pooling in (("embedder", gguf.PoolingType.MEAN), ("reranker", gguf.PoolingType.RANK)):
            write_random_gguf(running.models_dir / f"{name}.gguf", pooling=pooling, chat=False)
        try:
            yield running.start()
        finally:
            running.stop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the lines are run: like the repository's root, with a file to be heard."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "llamaherd").symlink_to(DOCS.parent / "llamaherd")
    with wave.open(str(folder / "speech.wav"), "wb") as sound:
        sound.setparams((1, 2, 16_000, 0, "NONE", ""))
        sound.writeframes(bytes(3200))
    return folder


def tell(herd: Herd, method: str, path: str, content: Any) -> dict[str, Any]:
    """What a reader of the page has done before; the last record of the answer."""
    answer = httpx.request(method, f"{herd.gateway_url}{path}", json=content, timeout=60).raise_for_status()
    records = answer.text.splitlines()
    last: dict[str, Any] = json.loads(records[-1]) if records else {}
    assert not last.get("error"), last
    return last


def send_demo_model(herd: Herd) -> None:
    url = f"{herd.gateway_url}/api/blobs/sha256:{api.digest()}"
    httpx.post(url, content=api.DEMO.read_bytes(), timeout=60).raise_for_status()


def forget(herd: Herd, model: str) -> None:
    if model in {entry["model"] for entry in herd.fleet()["models"]}:
        tell(herd, "DELETE", "/api/delete", {"model": model})


def prepare(herd: Herd, line: str) -> str:
    """Does what must come before the line, and returns it for this herd's address."""
    asked = parse_line(line)
    if asked.path in api.LOOKS or asked.path.endswith(("/unload", "/health")):
        tell(herd, "POST", "/api/v1/models/load", CRIA)
    elif "RESPONSE_ID" in line:
        kept = tell(herd, "POST", "/v1/responses", {**CRIA, "input": "Hello", "max_output_tokens": 8})
        line = line.replace("RESPONSE_ID", kept["id"])
    elif asked.method == "DELETE" and asked.path != "/api/user/keys/mine":
        name = "assistant" if asked.data else "pirate"
        tell(herd, "POST", "/api/copy", {"source": "cria", "destination": name})
    elif "twin.gguf" in line:
        send_demo_model(herd)
    elif asked.path.startswith("/api/blobs/"):
        forget(herd, "twin")  # a file need not be sent that a model was made of
    elif "JOB_ID" in line:
        forget(herd, PULLED)
        wanted = {"model": REPOSITORY, "quantization": QUANTIZATION}
        line = line.replace("JOB_ID", tell(herd, "POST", "/api/v1/models/download", wanted)["job_id"])
    return line.replace(api.ADDRESS, herd.gateway_url)


def records_of(answer: Answer) -> list[Any]:
    """What an answer says: its JSON, or each record of a stream."""
    kind, text = answer.content_type.partition(";")[0], answer.body.decode()
    match kind:
        case "application/json":
            return [json.loads(text)] if text else []
        case "application/x-ndjson":
            return [json.loads(record) for record in text.splitlines()]
        case "":
            assert not text
            return []
        case "text/event-stream":
            data = [record[6:] for record in text.splitlines() if record.startswith("data: ")]
            return [json.loads(record) for record in data if record != "[DONE]"]
    assert kind == "text/plain", f"{kind}: {text}"
    assert text
    return []


def check(answer: Answer, status: int) -> None:
    assert answer.status == status, answer
    records = records_of(answer)
    refusals = [record for record in records if isinstance(record, dict) and record.get("error")]
    if status < 400:
        assert refusals == []
    elif answer.body:
        (refusal,) = refusals
        error = refusal["error"]
        assert error if isinstance(error, str) else error["message"]


@pytest.mark.parametrize("line", LINES, ids=lambda line: f"{parse_line(line).method} {parse_line(line).path}")
def test_the_line_is_answered_as_the_page_says(herd: Herd, folder: Path, line: str) -> None:
    check(run_line(prepare(herd, line), folder), STATUS.get(line, 200))


@pytest.mark.parametrize(
    ("start", "status"),
    [
        ("curl http://127.0.0.1:8080/tokenize", 200),
        ("curl http://127.0.0.1:8080/v1/audio/transcriptions", 400),
        ("curl http://127.0.0.1:8080/api/blobs/", 200),
        ("curl -I http://127.0.0.1:8080/api/blobs/", 200),
    ],
)
def test_lines_can_be_run_without_curl(herd: Herd, folder: Path, start: str, status: int) -> None:
    line = prepare(herd, next(line for line in LINES if line.startswith(start)))
    send_demo_model(herd)

    check(run_httpx(line, folder), status)

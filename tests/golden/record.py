"""Record what the real llama-server answers, for the tests of the dialects.

`uv run python tests/golden/record.py` writes tests/golden/llama_server/: every body as it came, and `index.json`,
which says for each file what was asked, with which status and content type it was answered, and by which server.
Ids, times and speeds differ from one recording to the next; everything else does not.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import gguf
import httpx
from golden.cases import CASES, SERVERS, Case, Server

from harness.deadline import wait_until
from harness.herd import free_port, llama_server_or_none
from harness.random_gguf import write_random_gguf
from harness.scripted_gguf import write_scripted_gguf

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "llama_server"


def main() -> None:
    binary = llama_server_or_none()
    if binary is None:
        sys.exit("no llama-server: build one with `uv run llamaherd install llama-server`")
    index: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder)
        shutil.copy(ROOT / "llamaherd" / "llamaherd" / "demo" / "cria.gguf", models / "cria.gguf")
        write_scripted_gguf(models / "scripted.gguf")
        write_random_gguf(models / "random.gguf", width=32, layers=1, pooling=gguf.PoolingType.MEAN)
        for name, server in SERVERS.items():
            with running(binary, server, models) as client:
                for case in CASES[name]:
                    file, answer = record(client, case)
                    index[file] = {"server": name, **answer}
                    print(f"{answer['status']} {file}")
    kept = GOLDEN / "index.json"
    before = json.loads(kept.read_text()) if kept.exists() else {}
    for file in before.keys() - index.keys():
        (GOLDEN / file).unlink(missing_ok=True)
    kept.write_text(json.dumps(index, indent=1) + "\n")


@contextmanager
def running(binary: Path, server: Server, models: Path) -> Iterator[httpx.Client]:
    """A llama-server that is ready. It is started in the models' folder, so that no answer tells of this machine."""
    port = free_port()
    command = [binary, "-m", f"{server.model}.gguf", "--alias", server.model, "--host", "127.0.0.1"]
    command += ["--port", str(port), "-t", "1", "--no-warmup", *server.arguments]
    with (models / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=models, stdout=log, stderr=log)
    try:
        limits = httpx.Limits(max_keepalive_connections=0)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, limits=limits) as client:
            wait_until(lambda: process.poll() is not None or healthy(client), within_s=30, what="llama-server is ready")
            if process.poll() is not None:
                sys.exit((models / "log").read_text())
            yield client
    finally:
        process.terminate()
        process.wait(10)


def healthy(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False


def record(client: httpx.Client, case: Case) -> tuple[str, dict[str, Any]]:
    """Ask and keep the answer: its file's name, and what the index says of it."""
    if case.body is None:
        response = client.get(case.path, headers=case.headers)
    else:
        body = case.body if isinstance(case.body, bytes) else json.dumps(case.body).encode()
        response = client.post(case.path, content=body, headers=case.headers)
    kind = response.headers.get("content-type", "")
    ending = "sse" if "event-stream" in kind else "json" if "json" in kind else "txt"
    file = f"{case.name}.{ending}"
    (GOLDEN / file).write_bytes(response.content)
    asked = case.body.decode() if isinstance(case.body, bytes) else case.body
    return file, {"path": case.path, "request": asked, "status": response.status_code, "content_type": kind}


if __name__ == "__main__":
    main()

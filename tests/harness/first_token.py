"""How long it takes until cria says something."""

import subprocess
import time
from pathlib import Path

import httpx

from harness.herd import free_port

CRIA = Path(__file__).parents[2] / "llamaherd" / "llamaherd" / "demo" / "cria.gguf"


def first_token_s(url: str, began: float, timeout_s: float = 60) -> float:
    """Ask until a token of a streamed answer arrives; seconds since `began`."""
    body = {"model": "cria", "stream": True, "messages": [{"role": "user", "content": "hello"}]}
    while time.perf_counter() - began < timeout_s:
        try:
            with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=timeout_s) as response:
                for line in response.iter_lines():
                    if response.status_code == 200 and '"content":"' in line:
                        return time.perf_counter() - began
        except httpx.HTTPError:
            pass
        time.sleep(0.01)
    raise AssertionError(f"no token within {timeout_s:g} s")


def bare_s(llama_server: Path) -> float:
    """From the start of a llama-server without anything around it."""
    port = free_port()
    began = time.perf_counter()
    command = [str(llama_server), "--model", str(CRIA), "--port", str(port), "--no-webui"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        return first_token_s(f"http://127.0.0.1:{port}", began)
    finally:
        # Not SIGTERM: it waits for the answer we did not read to its end.
        process.kill()
        process.wait(10)

"""From `llamaherd up --demo` to the first streamed token: `uv run python bench/start.py`.

llama-server must be installed (`llamaherd install llama-server`); its own load of cria is part of the figure and is
also measured alone, in the same run.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from harness.herd import Herd, free_port, llama_server_or_none


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
    raise SystemExit(f"no token within {timeout_s:g} s")


def herd_s() -> float:
    with tempfile.TemporaryDirectory(prefix="llamaherd-start-") as folder:
        began = time.perf_counter()
        herd = Herd(Path(folder), "--demo").start(wait=False)
        try:
            return first_token_s(herd.gateway_url, began)
        finally:
            herd.stop()


def bare_s(llama_server: Path) -> float:
    model = Path(__file__).parents[1] / "llamaherd" / "llamaherd" / "demo" / "cria.gguf"
    port = free_port()
    began = time.perf_counter()
    command = [str(llama_server), "--model", str(model), "--port", str(port), "--no-webui"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        return first_token_s(f"http://127.0.0.1:{port}", began)
    finally:
        # Not SIGTERM: it waits for the answer we did not read to its end.
        process.kill()
        process.wait(10)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    llama_server = llama_server_or_none()
    if llama_server is None:
        raise SystemExit("no llama-server: run `llamaherd install llama-server` first")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    rounds = [(bare_s(llama_server), herd_s()) for _ in range(options.rounds)]
    for name, figures in zip(("llama-server alone", "llamaherd up"), zip(*rounds, strict=True), strict=True):
        print(
            f"{name:<20} first token after {statistics.median(figures):.2f} s"
            f" (median of {options.rounds}; {min(figures):.2f} to {max(figures):.2f})"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""From `llamaherd up --demo` to the first streamed token, and from a crash to the next: `uv run python bench/start.py`.

llama-server must be installed (`llamaherd install llama-server`); its own load of cria is part of the figure and is
also measured alone, in the same run. The bar for a crash (kill -9) is a second more than that.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from harness.first_token import bare_s, first_token_s
from harness.herd import Herd, llama_server_or_none


def herd_s() -> tuple[float, float]:
    """(from the start, from a crash of the llama-server)"""
    with tempfile.TemporaryDirectory(prefix="llamaherd-start-") as folder:
        began = time.perf_counter()
        herd = Herd(Path(folder), "--demo").start(wait=False)
        try:
            started_s = first_token_s(herd.gateway_url, began)
            (crashing,) = herd.llama_servers()
            began = time.perf_counter()
            crashing.kill()
            return started_s, first_token_s(herd.gateway_url, began)
        finally:
            herd.stop()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    llama_server = llama_server_or_none()
    if llama_server is None:
        raise SystemExit("no llama-server: run `llamaherd install llama-server` first")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    rounds = [(bare_s(llama_server), *herd_s()) for _ in range(options.rounds)]
    names = ("llama-server alone", "llamaherd up", "after a crash")
    for name, figures in zip(names, zip(*rounds, strict=True), strict=True):
        print(
            f"{name:<20} first token after {statistics.median(figures):.2f} s"
            f" (median of {options.rounds}; {min(figures):.2f} to {max(figures):.2f})"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

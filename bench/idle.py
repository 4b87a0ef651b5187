"""What a herd costs while nobody asks anything: `uv run python bench/idle.py`.

CPU time and proportional set size (PSS: shared pages divided among those who share them) of every process of
`llamaherd up --demo`, llama-server apart, over half a minute of silence. The bar is 2 % of one core and 200 MB; with
`--instances 8` it is 1 % and 60 MB for the supervisor.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from harness.first_token import CRIA
from harness.herd import Herd, llama_server_or_none


def load(herd: Herd, count: int) -> None:
    """Load so many models; all are cria."""
    names = [f"cria-{number}" for number in range(count)]
    for name in names:
        shutil.copy(CRIA, herd.models_dir / f"{name}.gguf")
    for name in names:
        herd.eventually(lambda name=name: herd.cli("load", name).returncode == 0, within_s=60, what=f"{name} is loaded")


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def measure(herd: Herd, seconds: float) -> list[tuple[str, float, float]]:
    """(process, percent of a core, MB PSS) of each process of the herd."""
    assert herd.process is not None
    named = [("launcher", psutil.Process(herd.process.pid))]
    named += [(entry["name"], psutil.Process(entry["pid"])) for entry in herd.state()["processes"]]
    named += [("llama-server", process) for process in herd.llama_servers()]
    before = {name: cpu_s(process) for name, process in named}
    began = time.perf_counter()
    time.sleep(seconds)
    passed_s = time.perf_counter() - began
    return [
        (name, 100 * (cpu_s(process) - before[name]) / passed_s, process.memory_full_info().pss / 1e6)
        for name, process in named
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30, help="how long to watch")
    parser.add_argument("--settle", type=float, default=10, help="seconds to wait first, for what starting leaves over")
    parser.add_argument("--instances", type=int, default=0, help="load so many models first")
    options = parser.parse_args()
    if llama_server_or_none() is None:
        raise SystemExit("no llama-server: run `llamaherd install llama-server` first")
    with tempfile.TemporaryDirectory(prefix="llamaherd-idle-") as folder:
        herd = Herd(Path(folder), "--demo").start()
        try:
            load(herd, options.instances)
            time.sleep(options.settle)
            rows = measure(herd, options.seconds)
        finally:
            herd.stop()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {options.seconds:g} s, {options.instances} loaded")
    ours = [row for row in rows if row[0] != "llama-server"]
    rows.append(("all but llama-server", sum(row[1] for row in ours), sum(row[2] for row in ours)))
    for name, percent, mb in rows:
        print(f"{name:<22}{percent:6.2f} % of a core {mb:7.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())

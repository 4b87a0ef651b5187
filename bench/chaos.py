"""A herd on real llama-servers under client load, with everything killed, stopped and starved at random.

Prints what was done and what came of it; exits with 1 when a request was lost, when one failed without a cause, when
the bus tells of other instances than run in the end, or when a process is left over.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from harness.chaos import Chaos, until_settled
from harness.herd import Herd


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        herd = Herd(Path(folder), "--demo").start()
        try:
            chaos = Chaos(herd, seconds=arguments.minutes * 60, clients=arguments.clients, seed=arguments.seed)
            tally = chaos.run()
            until_settled(herd)
        finally:
            herd.stop()
        left = [f"{process.pid} {process.name()}" for process in herd.processes()]
    print(tally)
    for text in (*tally.lost, *tally.unexplained, *left):
        print(" ", text)
    return 1 if tally.lost or tally.unexplained or left else 0


if __name__ == "__main__":
    sys.exit(main())

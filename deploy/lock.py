"""Writes the exact versions of everything installed as `constraint-dependencies` into the root pyproject.toml.

Reads what `uv sync` resolved; run it in the environment the tests have passed in. docs/adr/0006 says why.
"""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"# Pinned by `just lock`\.\nconstraint-dependencies = \[.*?\]\n", re.S)
ANCHOR = "[tool.uv]\npackage = false\n"


def pins() -> list[str]:
    """`name==version` of every package from an index; the workspace's own are editable and left out."""
    frozen = subprocess.run(
        ["uv", "pip", "freeze", "--exclude-editable"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return sorted(line for line in frozen.splitlines() if re.fullmatch(r"[A-Za-z0-9._-]+==\S+", line))


def main() -> None:
    path = ROOT / "pyproject.toml"
    text = path.read_text()
    rows = "".join(f'  "{pin}",\n' for pin in pins())
    block = f"# Pinned by `just lock`.\nconstraint-dependencies = [\n{rows}]\n"
    text = BLOCK.sub(block, text) if BLOCK.search(text) else text.replace(ANCHOR, ANCHOR + block)
    path.write_text(text)


if __name__ == "__main__":
    main()

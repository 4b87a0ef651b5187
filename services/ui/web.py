"""npm for the web app with the Node that the build uses: `just web-install`, `just web`.

`install` brings the packages that development and browser tests need; any other words are npm's own.
"""

import sys
from pathlib import Path

from hatch_build import npm

WEB = Path(__file__).parent / "llamaherd_ui" / "web"


def main(words: list[str]) -> None:
    if words != ["install"]:
        npm(WEB, *words)
    elif not (WEB / "node_modules" / ".package-lock.json").exists():
        npm(WEB, "ci", "--no-audit", "--no-fund")


if __name__ == "__main__":
    main(sys.argv[1:])

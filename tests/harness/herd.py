"""A whole herd as a user starts it: `llamaherd up` in a process of its own, on ports and folders of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil

from harness.deadline import wait_until
from llamaherd.launcher.llama_server import find_llama_server

T = TypeVar("T")

QUIET_PORTS = {"LLAMAHERD_GATEWAY_OLLAMA_PORT": "0", "LLAMAHERD_GATEWAY_LMSTUDIO_PORT": "0"}
"""Tests that run side by side must not fight for the well-known ones."""
READY_S = 60.0
STOP_S = 30.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def llama_server_or_none() -> Path | None:
    """The real llama-server, found the way the launcher finds it."""
    found = find_llama_server(None, os.environ)
    return found.path if found is not None else None


class Herd:
    """One `llamaherd up`."""

    def __init__(self, folder: Path, *arguments: str, environ: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.data_dir = folder / "data"
        self.models_dir = folder / "models"
        self.port, self.ui_port = free_port(), free_port()
        self.gateway_url = f"http://127.0.0.1:{self.port}"
        self.ui_url = f"http://127.0.0.1:{self.ui_port}"
        self.arguments = arguments
        self.environ = {**os.environ, "LLAMAHERD_URL": self.ui_url, "NO_COLOR": "1", **QUIET_PORTS, **(environ or {})}
        self.environ.setdefault("LLAMAHERD_LLAMA_SERVER", str(llama_server_or_none() or ""))
        if not self.environ["LLAMAHERD_LLAMA_SERVER"]:
            del self.environ["LLAMAHERD_LLAMA_SERVER"]
        self.process: subprocess.Popen[bytes] | None = None
        self.models_dir.mkdir(parents=True, exist_ok=True)

    def start(self, *, wait: bool = True) -> "Herd":
        command = [sys.executable, "-m", "llamaherd", "up", *self.arguments]
        command += ["--data-dir", str(self.data_dir), "--models-dir", str(self.models_dir)]
        command += ["--port", str(self.port), "--ui-port", str(self.ui_port)]
        with (self.folder / "up.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=self.environ, start_new_session=True)
        if wait:
            self.until_ready()
        return self

    def until_ready(self, within_s: float = READY_S) -> None:
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            assert self.process is not None
            if self.process.poll() is not None:
                break
            if self.state().get("ready"):
                return
            time.sleep(0.02)
        raise AssertionError(f"the herd did not get ready:\n{self.output()}")

    def output(self) -> str:
        return (self.folder / "up.log").read_text()

    def state(self) -> dict[str, Any]:
        """The launcher's state file; empty while there is none."""
        try:
            state: dict[str, Any] = json.loads((self.data_dir / "herd.json").read_text())
        except (OSError, ValueError):
            return {}
        return state

    def pid(self, name: str) -> int:
        """Process id of `gateway`, `nats-server` ... as it is now."""
        return next(int(process["pid"]) for process in self.state()["processes"] if process["name"] == name)

    def kill(self, name: str) -> int:
        """kill -9 one of the herd's processes; returns the pid it had."""
        pid = self.pid(name)
        os.kill(pid, signal.SIGKILL)
        return pid

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """Ctrl-C, and wait; returns the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(STOP_S)

    def processes(self) -> list[psutil.Process]:
        """Every living process of this herd: its folder is on the command line or in the environment."""
        mark = str(self.folder)
        found = []
        for process in psutil.process_iter():
            try:
                if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
                    continue
                words = [*process.cmdline(), process.environ().get("LLAMAHERD_DATA_DIR", "")]
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
            if any(mark in word for word in words):
                found.append(process)
        return found

    def llama_servers(self) -> list[psutil.Process]:
        """Living llama-servers of this herd, real or fake."""
        found = []
        for process in self.processes():
            try:
                if str(self.models_dir) in " ".join(process.cmdline()) and "--model" in process.cmdline():
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return [process for process in found if "llamaherd" not in process.cmdline()]

    def cli(self, *arguments: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """Run `llamaherd ...` against this herd."""
        return subprocess.run(
            [sys.executable, "-m", "llamaherd", *arguments],
            env={**self.environ, "LLAMAHERD_GATEWAY_URL": self.gateway_url},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def fleet(self) -> dict[str, Any]:
        content: dict[str, Any] = httpx.get(f"{self.ui_url}/api/v1/fleet", timeout=5).raise_for_status().json()
        return content

    def instance(self, model: str) -> dict[str, Any]:
        """The instance of a model as the ui shows it; empty when there is none."""
        found = next((entry for entry in self.fleet()["models"] if entry["model"] == model), {})
        return found.get("instance") or {}

    def chat(self, model: str, text: str, *, timeout_s: float = 30, **parameters: Any) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0, **parameters}
        return httpx.post(f"{self.gateway_url}/v1/chat/completions", json=body, timeout=timeout_s)

    def eventually(self, condition: Callable[[], T], *, within_s: float, what: str) -> T:
        """Wait for a condition; while the herd is mending itself, refused connections count as not yet."""

        def ask() -> T | None:
            try:
                return condition()
            except (httpx.HTTPError, KeyError, StopIteration, AssertionError):
                return None

        return wait_until(ask, within_s=within_s, what=what)  # type: ignore[return-value]

"""One service under test: the real process, its presence, what it says."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from harness.deadline import until
from harness.nats import NatsServer
from llamaherd_shared.bus import Bus, Recorded
from llamaherd_shared.events.presence import Presence


class ServiceProcess:
    """`python -m llamaherd_<name>` with its own data folder; may be started again after it ended."""

    def __init__(self, name: str, folder: Path, server: NatsServer, *, node: str = "here") -> None:
        self.name, self.node, self.server = name, node, server
        self.data_dir = folder / "data"
        self.output_file = folder / f"{name}.out"
        self.process: subprocess.Popen[bytes] | None = None
        self.presence: Presence | None = None
        """Its newest beat, once `start` has returned."""

    async def start(self, bus: Bus, **settings: Any) -> "ServiceProcess":
        """Start it and wait until it says that it is ready."""
        watch = await bus.watch(bus.subjects.presence(self.node, self.name), self._hear)
        self.spawn(**settings)
        process = self.process
        assert process is not None
        await until(lambda: process.poll() is not None or self.ready, within_s=30, what=f"{self.name} is ready")
        assert process.poll() is None, self.output
        self._watch = watch
        return self

    def spawn(self, **settings: Any) -> None:
        """Start it and do not wait."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("LLAMAHERD_")}
        environment |= {
            "LLAMAHERD_NODE": self.node,
            "LLAMAHERD_DATA_DIR": str(self.data_dir),
            "LLAMAHERD_NATS_URL": self.server.url,
        }
        environment |= {f"LLAMAHERD_{self.name.upper()}_{key.upper()}": str(value) for key, value in settings.items()}
        with self.output_file.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"llamaherd_{self.name}"], stdout=out, stderr=out, env=environment
            )

    @property
    def ready(self) -> bool:
        """Whether this very process has said that it is ready."""
        told, process = self.presence, self.process
        return told is not None and process is not None and told.pid == process.pid and told.ready

    @property
    def note(self) -> str:
        """What troubles it, by its newest beat."""
        return self.presence.note if self.presence is not None else ""

    @property
    def output(self) -> str:
        return self.output_file.read_text()

    @property
    def projections(self) -> list[Path]:
        return sorted((self.data_dir / "projections").glob("*.sqlite"))

    def delete_projections(self) -> None:
        for path in (self.data_dir / "projections").iterdir():
            path.unlink()

    def kill(self) -> None:
        """kill -9, as a crash would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    async def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        assert self.process is not None
        self.process.terminate()
        return await asyncio.to_thread(self.process.wait, 15)

    def clean_up(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()

    def _hear(self, recorded: Recorded) -> None:
        if recorded.data:
            self.presence = msgspec.json.decode(recorded.data, type=Presence)

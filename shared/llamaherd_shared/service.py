"""The frame every service runs in: settings to bus, logging, presence, signals, exit code."""

import asyncio
import contextlib
import os
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import msgspec
import uvloop

from llamaherd_shared import __version__
from llamaherd_shared.bus import Bus, BusClosed
from llamaherd_shared.errors import HerdError
from llamaherd_shared.events.presence import BEAT_S, TTL_S, Presence
from llamaherd_shared.log import structlog
from llamaherd_shared.loop_watch import watch_loop
from llamaherd_shared.projection import Projection
from llamaherd_shared.settings import CommonSettings, SettingsError
from llamaherd_shared.subjects import Subjects
from llamaherd_shared.tasks import end
from llamaherd_shared.telemetry import LinePublisher, configure_logging, publish_logging, setup_tracing

PARENT_VARIABLE: Final = "LLAMAHERD_PARENT_PID"
"""Set by the launcher: a service whose launcher is gone stops by itself."""
PARENT_CHECK_S: Final = 1.0

EXIT_FAILED: Final = 1
EXIT_SETTINGS: Final = 2


class Service:
    """One running service: its bus, its log, and whether it should stop."""

    def __init__(self, name: str, common: CommonSettings, bus: Bus) -> None:
        self.name, self.common, self.bus = name, common, bus
        self.log: Any = structlog.get_logger(f"llamaherd.{name}")
        self.stopping = asyncio.Event()
        """Set by SIGTERM, SIGINT, or the launcher's end."""
        self._started_ns = time.time_ns()
        self._ready = False
        self._notes: dict[str, str] = {}
        self._remarks: dict[str, str] = {}
        self._changed = asyncio.Event()

    def ready(self, ready: bool = True) -> None:
        """Say whether this service serves; goes out with a presence beat at once."""
        if ready != self._ready:
            self._ready = ready
            self._changed.set()

    @property
    def is_ready(self) -> bool:
        return self._ready and not any(self._notes.values())

    def trouble(self, sentence: str, *, about: str = "") -> None:
        """Say what troubles this service; an empty sentence takes it back. Shown with its presence."""
        if self._notes.get(about, "") != sentence:
            self._notes[about] = sentence
            self._changed.set()

    def remark(self, sentence: str, *, about: str) -> None:
        """Say what is wrong although this service serves; an empty sentence takes it back. Shown with its presence."""
        if self._remarks.get(about, "") != sentence:
            self._remarks[about] = sentence
            self._changed.set()

    def projection(self, schema: str, version: int) -> Projection:
        """This service's SQLite file; a new schema version is a new file."""
        return Projection(self.common.data_dir / "projections" / f"{self.name}.v{version}.sqlite", schema)

    def lines(self, service: str, unit: str) -> LinePublisher:
        """A publisher for the lines of one source."""
        return LinePublisher(self.bus, node=self.common.node, service=service, unit=unit)

    async def leave(self) -> None:
        """Take presence back, so that nobody waits for it to expire."""
        if self.bus.connected:
            await self.bus.withdraw(self.bus.subjects.presence(self.common.node, self.name))

    async def beat(self) -> None:
        """Send presence every `BEAT_S` seconds and at every change, until cancelled."""
        subject = self.bus.subjects.presence(self.common.node, self.name)
        while True:
            self._changed.clear()
            presence = Presence(
                node=self.common.node,
                service=self.name,
                version=__version__,
                pid=os.getpid(),
                started_ns=self._started_ns,
                ready=self.is_ready,
                note=" ".join(note for note in (*self._notes.values(), *self._remarks.values()) if note),
            )
            await self.bus.beat(subject, msgspec.json.encode(presence), TTL_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BEAT_S):
                    await self._changed.wait()


@contextlib.asynccontextmanager
async def open_service(name: str, common: CommonSettings) -> AsyncIterator[Service]:
    """Connect, create the streams, send logs and presence to the bus; undone in reverse on the way out."""
    bus = await Bus.connect(
        common.nats_url, service=name, subjects=Subjects(common.prefix), seed_file=common.nats_seed_file, timeout_s=15
    )
    async with contextlib.AsyncExitStack() as undo:
        undo.push_async_callback(bus.close)
        service = Service(name, common, bus)
        await bus.ensure_streams()
        handler = publish_logging(service.lines(name, str(os.getpid())), asyncio.get_running_loop())
        undo.callback(handler.close_lines)
        beating = asyncio.create_task(service.beat())
        undo.push_async_callback(service.leave)
        undo.push_async_callback(end, beating)
        yield service


def run_service(name: str, main: Callable[[Service], Awaitable[None]], common: CommonSettings) -> int:
    """Run `main` until it returns or a signal comes; returns the process's exit code.

    Expected failures print one sentence: 2 for settings, 1 for anything else.
    """
    configure_logging(name, common.log_level)
    log = structlog.get_logger(f"llamaherd.{name}")
    try:
        setup_tracing(name, common.otlp_endpoint)
        uvloop.run(_run(name, main, common))
    except SettingsError as error:
        log.error(error.message)
        return EXIT_SETTINGS
    except HerdError as error:
        log.error(error.message)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception:
        log.exception(f"{name} failed unexpectedly")
        return EXIT_FAILED
    return 0


async def _run(name: str, main: Callable[[Service], Awaitable[None]], common: CommonSettings) -> None:
    async with open_service(name, common) as service:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, service.stopping.set)
        work = asyncio.ensure_future(main(service))
        lost = asyncio.create_task(service.bus.closed.wait())
        orphaned = asyncio.create_task(_watch_parent(service))
        watching = asyncio.create_task(_watch_loop(service))
        try:
            await asyncio.wait({work, lost}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise BusClosed("the connection to nats-server was closed for good; stopping to be started again")
            await work
        finally:
            await end(work, lost, orphaned, watching)


async def _watch_parent(service: Service) -> None:
    """Stop when the launcher that started us is gone (killed: it could not stop us itself)."""
    parent = int(os.environ.get(PARENT_VARIABLE, "0"))
    while parent:
        if os.getppid() != parent:
            service.log.warning("the launcher is gone: stopping")
            service.stopping.set()
            return
        await asyncio.sleep(PARENT_CHECK_S)


async def _watch_loop(service: Service) -> None:
    if limit_s := service.common.loop_watch_s:
        await watch_loop(service.log, limit_s=limit_s)


def load_or_exit(load: Callable[[], Any], name: str) -> Any:
    """Read settings in `__main__`; a mistake in them is one sentence on stderr and exit code 2."""
    try:
        return load()
    except SettingsError as error:
        print(f"llamaherd {name}: {error.message}", file=sys.stderr)
        raise SystemExit(EXIT_SETTINGS) from None


def new_id() -> str:
    """A random id for messages and requests: 16 hex digits of time, so that they sort, and 16 of chance."""
    return f"{time.time_ns():016x}{secrets.token_hex(8)}"

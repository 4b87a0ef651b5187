"""Composition root: wires projections, live tail and routes; starts and stops them in order."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any, Final

import uvicorn
from litestar import Litestar
from litestar.di import Provide
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin

from llamaherd_shared import __version__
from llamaherd_shared.bus import StreamHead
from llamaherd_shared.errors import Rejected, Unavailable
from llamaherd_shared.projection import Follower, Projection
from llamaherd_shared.service import Service
from llamaherd_shared.streams import EVENTS, LOGS, REQUESTS
from llamaherd_shared.tasks import end
from llamaherd_ui import store
from llamaherd_ui.api import HANDLERS, Ui
from llamaherd_ui.handlers import EXCEPTION_HANDLERS, Edge, show_web_app
from llamaherd_ui.resume import last_id, name_streams
from llamaherd_ui.settings import UiSettings
from llamaherd_ui.tail import Tail

RETRY_S: Final = 0.5
IDENTITY_CHECK_S: Final = 5.0
"""How soon streams that were made anew under us are noticed."""
EXPIRY_CHECK_S: Final = 1.0


async def run(service: Service, settings: UiSettings) -> None:
    """Serve until `service.stopping`."""
    listener = bind(settings.host, settings.port)
    facts = service.projection(store.FACTS_SCHEMA, store.FACTS_VERSION)
    requests_path = facts.path.with_name(f"ui_requests.v{store.REQUESTS_VERSION}.sqlite")
    requests = Projection(requests_path, store.REQUESTS_SCHEMA)
    fleet = store.FleetStore(facts)
    tail = Tail(
        service.bus,
        facts=facts,
        requests=requests,
        replay_limit=settings.replay_limit,
        ring_bytes=settings.recent_bytes,
    )
    herd = _Herd(service, tail, fleet, requests)
    ui = Ui(bus=service.bus, settings=settings, fleet=fleet, requests=requests, tail=tail)
    server = Server(make_app(ui), settings)
    host, port = listener.getsockname()[:2]
    tasks: list[asyncio.Task[Any]] = []
    try:
        await herd.open()
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        tasks += [serving, asyncio.create_task(herd.follow()), asyncio.create_task(service.stopping.wait())]
        service.log.info(f"web app and API on http://{f'[{host}]' if ':' in host else host}:{port}")
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        # Streams end by themselves, then uvicorn has nothing to wait for: it would wait for ever otherwise.
        service.ready(False)
        tail.close()
        server.should_exit = True
        await serving
        for task in done:
            task.result()
    finally:
        await end(*tasks)
        listener.close()
        facts.close()
        requests.close()


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `Rejected` with a sentence when the port is taken."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=256)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise Rejected(f"cannot listen on {host} port {port}: {reason} (`ui.host`, `ui.port`)") from error


def make_app(ui: Ui) -> Edge:
    """The whole HTTP application."""
    app = Litestar(
        route_handlers=[*HANDLERS, show_web_app],
        dependencies={"ui": Provide(lambda: ui, sync_to_thread=False)},
        exception_handlers=EXCEPTION_HANDLERS,
        openapi_config=OpenAPIConfig(
            title="Llamaherd",
            version=__version__,
            path="/api/v1/openapi.json",
            render_plugins=[JsonRenderPlugin(path="/")],
        ),
        logging_config=None,
        signature_types=[Ui],
    )
    return Edge(app, ui.settings)


class Server(uvicorn.Server):
    """uvicorn beside our own tasks: signals belong to `service.py`."""

    def __init__(self, app: Edge, settings: UiSettings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                log_level="warning",
                access_log=False,
                lifespan="off",
                server_header=False,
                timeout_graceful_shutdown=int(settings.stop_timeout_s) or 1,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Herd:
    """Everything that comes in from the bus."""

    def __init__(self, service: Service, tail: Tail, fleet: store.FleetStore, requests: Projection) -> None:
        self._service, self._tail = service, tail
        self._fleet, self._requests = fleet, requests
        self._followers: list[Follower] = []
        self._lines_from = 0
        tail.settled = self.is_settled

    def is_settled(self) -> bool:
        return bool(self._followers) and all(follower.caught_up.is_set() for follower in self._followers)

    async def open(self) -> None:
        """Learn where the streams stand, so that the first request can be answered."""
        bus, tail = self._service.bus, self._tail
        await bus.watch(bus.subjects.all("met"), tail.on_sample)
        await bus.watch(bus.subjects.all("presence"), tail.on_presence)
        await self._identify()

    async def _identify(self) -> bool:
        """Take names and ends of the streams; `True` when they are others than before."""
        heads = await self._read_heads()
        stream_id = name_streams(head.created for head in heads)
        if stream_id == self._tail.stream_id:
            return False
        self._tail.stream_id = stream_id
        self._lines_from = heads[-1].last
        self._tail.restart_lines(self._lines_from)
        return True

    async def _read_heads(self) -> list[StreamHead]:
        while True:
            try:
                return [await self._service.bus.stream_head(stream) for stream in (EVENTS, REQUESTS, LOGS)]
            except Unavailable:
                await asyncio.sleep(RETRY_S)

    async def follow(self) -> None:
        """Follow all streams, and start over when they were made anew."""
        expiring = asyncio.create_task(self._expire())
        try:
            await asyncio.gather(self._read_presence(), self._follow_streams())
        finally:
            expiring.cancel()

    async def _follow_streams(self) -> None:
        while True:
            self._restart_rings()
            tasks = [asyncio.create_task(follower.run()) for follower in self._make_followers()]
            tasks.append(asyncio.create_task(self._tail.follow_lines(self._lines_from)))
            tasks.append(asyncio.create_task(self._say_ready()))
            watching = asyncio.create_task(self._wait_for_other_streams())
            try:
                await asyncio.wait({watching, *tasks[:-1]}, return_when=asyncio.FIRST_COMPLETED)
                for task in tasks[:-1]:
                    if task.done():
                        task.result()
            finally:
                await end(*tasks, watching)
            self._service.log.warning("the streams were made anew: starting over")
            self._tail.restart()

    def _make_followers(self) -> list[Follower]:
        tail, bus = self._tail, self._service.bus
        facts = self._fleet.source(committed=tail.on_facts, reset=self._forget_facts)
        requests = store.requests_source(committed=tail.on_requests, reset=self._forget_requests)
        self._followers = [
            Follower(bus, self._fleet.projection, facts, trouble=lambda text: self._trouble(EVENTS, text)),
            Follower(bus, self._requests, requests, trouble=lambda text: self._trouble(REQUESTS, text)),
        ]
        return self._followers

    def _trouble(self, stream: str, sentence: str) -> None:
        self._service.trouble(sentence, about=stream)

    def _restart_rings(self) -> None:
        self._tail.facts.restart(self._fleet.sequence)
        checkpoint = self._requests.checkpoint(REQUESTS)
        self._tail.requests.restart(last_id(checkpoint.sequence) if checkpoint else 0)

    def _forget_facts(self) -> None:
        """The tables were emptied: what clients have seen means nothing any more."""
        self._tail.facts.restart(0)
        self._tail.restart()

    def _forget_requests(self) -> None:
        self._tail.requests.restart(0)
        self._tail.restart()

    async def _say_ready(self) -> None:
        for follower in self._followers:
            await follower.caught_up.wait()
        self._service.ready()

    async def _wait_for_other_streams(self) -> None:
        while True:
            await asyncio.sleep(IDENTITY_CHECK_S)
            if await self._identify():
                return

    async def _read_presence(self) -> None:
        with contextlib.suppress(Unavailable):
            await self._tail.read_presence()

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(EXPIRY_CHECK_S)
            self._tail.expire_services()

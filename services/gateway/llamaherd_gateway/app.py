"""The gateway, put together. Shutdown happens in the reverse order of what is built here."""

import asyncio
import contextlib
import errno
import gc
from pathlib import Path
from typing import Final

from uvicorn.config import Config

from llamaherd_gateway.api import Api
from llamaherd_gateway.loading import Loader
from llamaherd_gateway.relay import Relay, RelayProtocol
from llamaherd_gateway.settings import GatewaySettings
from llamaherd_gateway.store import SCHEMA, VERSION, View, load_fleet
from llamaherd_shared.addresses import is_loopback
from llamaherd_shared.errors import Unavailable
from llamaherd_shared.projection import Follower
from llamaherd_shared.service import Service
from llamaherd_shared.tasks import end

BACKLOG: Final = 2048
CLOSE_S: Final = 1.0
"""For the last bytes of cut answers to leave."""


async def serve(service: Service, settings: GatewaySettings) -> None:
    """Run until the service is told to stop."""
    common, bus, log = service.common, service.bus, service.log
    secret = read_secret(common.secret_file)
    projection = service.projection(SCHEMA, VERSION)
    view = View(load_fleet(projection.db))
    follower = Follower(bus, projection, view.source(), trouble=lambda text: service.trouble(text, about="projection"))
    loader = Loader(
        view,
        bus,
        caught_up=follower.caught_up,
        load_timeout_s=settings.load_timeout_s,
        ask_timeout_s=settings.ask_timeout_s,
    )
    relay = Relay(settings=settings, node=common.node, secret=secret, view=view, loader=loader, bus=bus, log=log)

    def readiness() -> str:
        if not follower.caught_up.is_set():
            return "the projection has not caught up with the log yet"
        return "" if bus.connected else "the bus is away; models that are loaded are served all the same"

    tasks = [asyncio.create_task(follower.run()), asyncio.create_task(relay.sweep())]
    try:
        server = await _listen(Api(view, readiness), relay, settings)
        host, port = server.sockets[0].getsockname()[:2]
        _settle_memory()
        log.info("listening", address=f"http://{host}:{port}/v1")
        if not is_loopback(host):
            log.warning("anyone who can reach this address can use the models: there are no keys yet", host=host)
        tasks.append(asyncio.create_task(_announce(service, follower)))
        stopping = asyncio.create_task(service.stopping.wait())
        # A follower never ends by itself: if it does, that is an error to stop with.
        await asyncio.wait({stopping, *tasks[:2]}, return_when=asyncio.FIRST_COMPLETED)
        service.ready(False)
        stopping.cancel()
        await _drain(server, relay, settings.drain_timeout_s)
        for task in tasks[:2]:
            if task.done() and not task.cancelled():
                task.result()
    finally:
        await end(*tasks)
        projection.close()


def read_secret(path: Path | None) -> bytes:
    """The herd's secret. Without a file the keys of llama-servers derive from the empty secret."""
    if path is None:
        return b""
    try:
        return path.read_bytes()
    except OSError as error:
        raise Unavailable(f"cannot read the secret {path}: {error.strerror} (`secret_file`)") from error


async def _announce(service: Service, follower: Follower) -> None:
    await follower.caught_up.wait()
    service.ready()


async def _listen(api: Api, relay: Relay, settings: GatewaySettings) -> asyncio.Server:
    """uvicorn's protocol on a socket of ours: signals and shutdown are the service's business, not uvicorn's."""
    config = Config(
        api,
        interface="asgi3",
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        proxy_headers=False,
    )
    config.load()
    loop = asyncio.get_running_loop()
    try:
        return await loop.create_server(
            lambda: RelayProtocol(config, relay), settings.host, settings.port, backlog=BACKLOG
        )
    except OSError as error:
        why = "the port is in use" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
        address = f"{settings.host}:{settings.port}"
        raise Unavailable(f"cannot listen on {address}: {why} (`gateway.host`, `gateway.port`)") from error


async def _drain(server: asyncio.Server, relay: Relay, timeout_s: float) -> None:
    """Take no more connections, let what is in flight finish, then end it."""
    server.close()
    connections = relay.server_state.connections
    for protocol in list(connections):
        protocol.shutdown()
    await _until_empty(relay, timeout_s)
    for protocol in list(connections):
        if isinstance(protocol, RelayProtocol):
            protocol.stop()
    await _until_empty(relay, CLOSE_S)
    for protocol in list(connections):
        protocol.transport.abort()
    relay.close_idle()
    # Connections tell their exchanges in the next turns of the loop; the bus is closed only after that.
    await _until_empty(relay, CLOSE_S)
    relay.flush()


async def _until_empty(relay: Relay, timeout_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while relay.server_state.connections:
                relay.connection_closed.clear()
                await relay.connection_closed.wait()


def _settle_memory() -> None:
    """Exchanges make no cycles: look for garbage rarely, and never among what lives as long as the process.

    With the default thresholds a collection interrupts every few dozen requests.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)

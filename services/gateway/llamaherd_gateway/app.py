"""The gateway, put together. Shutdown happens in the reverse order of what is built here."""

import asyncio
import contextlib
import errno
import gc
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from uvicorn.config import Config

from llamaherd_gateway.access.gate import Access
from llamaherd_gateway.actions import Actions
from llamaherd_gateway.api import Api
from llamaherd_gateway.blobs import Blobs
from llamaherd_gateway.conversations import Conversations
from llamaherd_gateway.dialects.dialect import Dialect, Herd
from llamaherd_gateway.dialects.lmstudio import LMSTUDIO
from llamaherd_gateway.dialects.ollama import OLLAMA
from llamaherd_gateway.dialects.openai import OPENAI
from llamaherd_gateway.handlers import Handler, LmStudioHandlers, OllamaHandlers, OpenAiHandlers, OwnHandlers
from llamaherd_gateway.openapi import render_document
from llamaherd_gateway.relay.protocol import RelayProtocol
from llamaherd_gateway.relay.relay import Relay
from llamaherd_gateway.response_handlers import ResponseHandlers
from llamaherd_gateway.routing.attendance import Attendance
from llamaherd_gateway.routing.cards import build_cards
from llamaherd_gateway.routing.growing import Growing
from llamaherd_gateway.routing.loading import Loader
from llamaherd_gateway.routing.policy import Policy
from llamaherd_gateway.routing.watching import Watching
from llamaherd_gateway.settings import GatewaySettings
from llamaherd_gateway.slices import ask_for_slice
from llamaherd_gateway.store import SCHEMA, VERSION, View, load_fleet
from llamaherd_gateway.transfers import Transfers
from llamaherd_shared import __version__
from llamaherd_shared.addresses import is_loopback
from llamaherd_shared.configuration import Configuration
from llamaherd_shared.errors import Unavailable
from llamaherd_shared.model_spec import Models
from llamaherd_shared.projection import Follower
from llamaherd_shared.service import Service, new_id
from llamaherd_shared.tasks import end

BACKLOG: Final = 2048
CLOSE_S: Final = 1.0
"""For the last bytes of cut answers to leave."""


async def serve(
    service: Service, settings: GatewaySettings, models: Models, configuration: Configuration[GatewaySettings]
) -> None:
    """Run until the service is told to stop."""
    common, bus, log = service.common, service.bus, service.log
    secret = read_secret(common.secret_file)
    projection = service.projection(SCHEMA, VERSION)
    view = View(load_fleet(projection.db))
    follower = Follower(bus, projection, view.source(), trouble=lambda text: service.trouble(text, about="projection"))
    gateway_id = f"{common.node}-{new_id()}"
    attendance = Attendance(time.monotonic(), silence_s=settings.node_silence_s)
    loader = Loader(
        view,
        bus,
        caught_up=follower.caught_up,
        attendance=attendance,
        load_timeout_s=settings.load_timeout_s,
        wait_timeout_s=settings.queue_timeout_s,
        ask_timeout_s=settings.ask_timeout_s,
        by=gateway_id,
    )
    policy = Policy(models, aliases=settings.aliases, default_model=settings.default_model)
    loopback = is_loopback(settings.host) or settings.insecure
    access = Access(
        view,
        settings.keys,
        loopback_only=loopback,
        gateway=gateway_id,
        aliases=policy.aliases,
        caught_up=follower.caught_up.is_set,
    )
    policy.on_change.append(lambda: access.use_aliases(policy.aliases))
    conversations = Conversations(bus, log, settings)
    relay = Relay(
        settings=settings,
        node=common.node,
        secret=secret,
        view=view,
        loader=loader,
        bus=bus,
        log=log,
        own_names=own_names(settings.host),
        access=access,
        policy=policy,
        conversations=conversations,
    )

    def readiness() -> str:
        if not follower.caught_up.is_set():
            return "the projection has not caught up with the log yet"
        return "" if bus.connected else "the bus is away; models that are loaded are served all the same"

    def herd() -> Herd:
        cards = build_cards(view.fleet, view.table, relay.names.aliases, relay.expires_ns())
        return Herd(cards=cards, now_ns=time.time_ns(), version=__version__)

    async def reload() -> None:
        now, said = configuration.read()
        policy.replace(said, aliases=now.aliases, default_model=now.default_model)
        log.info("llamaherd.yaml was read again")
        if later := configuration.needing_restart(now, but=frozenset({"aliases", "default_model"})):
            log.warning("what else has changed counts after a restart", settings=later)

    growing = Growing(view, bus, log, by=gateway_id, spec_of=policy.of, waiting=lambda: relay.admission.queued)
    watching = Watching(
        view, bus, log, attendance=attendance, loader=loader, spec_of=policy.of, ready=follower.caught_up
    )
    working = (
        follower.run(),
        watching.run(),
        relay.sweep(),
        relay.gossip(),
        growing.run(),
        configuration.follow(service, reload),
    )
    tasks = [asyncio.create_task(task) for task in working]
    try:
        actions = Actions(
            view,
            bus,
            loader,
            node=common.node,
            herd=herd,
            names=lambda: relay.names,
            policy=policy,
            residency=relay.residency,
        )
        blobs = Blobs(common.data_dir / "blobs")
        transfers = Transfers(actions, blobs, lambda: own_address(settings.host, servers[0]))
        own = OwnHandlers(lambda: render_document(handlers, keys_required=access.required))
        handlers: tuple[Handler, ...] = (
            *OllamaHandlers(actions, blobs, transfers).table(),
            *LmStudioHandlers(actions, transfers).table(),
            *OpenAiHandlers(actions).table(),
            *ResponseHandlers(conversations).table(),
            *own.table(),
        )
        make_api = partial(
            Api,
            herd=herd,
            readiness=readiness,
            handlers=handlers,
            guard=relay.guard,
            access=access,
            names=lambda: relay.names,
            new_id=new_id,
            receive_timeout_s=settings.receive_timeout_s,
        )
        servers = await _listen(make_api, relay, settings, log)
        host, port = servers[0].sockets[0].getsockname()[:2]
        _settle_memory()
        ask_for_slice()
        log.info("listening", address=f"http://{host}:{port}/v1")
        if not is_loopback(host) and not access.required:
            log.warning("anyone who can reach this address can use the models: no keys are asked for", host=host)
        running = tuple(tasks)
        tasks.append(asyncio.create_task(_announce(service, follower, access)))
        stopping = asyncio.create_task(service.stopping.wait())
        # A follower never ends by itself: if it does, that is an error to stop with.
        await asyncio.wait({stopping, *running}, return_when=asyncio.FIRST_COMPLETED)
        service.ready(False)
        stopping.cancel()
        await _drain(servers, relay, settings.drain_timeout_s)
        for task in running:
            if task.done() and not task.cancelled():
                task.result()
    finally:
        await end(*tasks)
        projection.close()


def own_names(host: str) -> frozenset[str] | None:
    """This machine's names, by which a request on loopback may call it; `None` when others may call it anyhow."""
    if not is_loopback(host):
        return None
    name = socket.gethostname().lower()
    return frozenset({name, name.partition(".")[0], host.lower()})


def own_address(host: str, server: asyncio.Server) -> str:
    """Where a supervisor reaches this gateway, to fetch a file that a client has sent."""
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    port = server.sockets[0].getsockname()[1]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def read_secret(path: Path | None) -> bytes:
    """The herd's secret. Without a file the keys of llama-servers derive from the empty secret."""
    if path is None:
        return b""
    try:
        return path.read_bytes()
    except OSError as error:
        raise Unavailable(f"cannot read the secret {path}: {error.strerror} (`secret_file`)") from error


async def _announce(service: Service, follower: Follower, access: Access) -> None:
    await follower.caught_up.wait()
    if access.required and not access.any_key:
        service.log.warning("every request needs an API key, and there is none: make one with `llamaherd key create`")
    service.ready()


async def _listen(
    make_api: Callable[[Dialect], Api], relay: Relay, settings: GatewaySettings, log: Any
) -> list[asyncio.Server]:
    """The main listener first. The ports of Ollama and LM Studio may be taken by themselves: that is no error."""
    host, main = settings.host, settings.port
    servers: list[asyncio.Server] = []
    for name, port, dialect in (
        ("port", main, OPENAI),
        ("ollama_port", settings.ollama_port, OLLAMA),
        ("lmstudio_port", settings.lmstudio_port, LMSTUDIO),
    ):
        if port == 0 and servers:
            continue
        try:
            servers.append(await _listen_on(make_api(dialect), relay, host, port, dialect))
        except OSError as error:
            why = "the port is in use" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
            if not servers or error.errno != errno.EADDRINUSE:
                for server in servers:
                    server.close()
                text = f"cannot listen on {host}:{port}: {why} (`gateway.host`, `gateway.{name}`)"
                raise Unavailable(text) from error
            log.warning(f"{host}:{port} is in use: going on without it (`gateway.{name}`; 0 switches it off)")
    return servers


async def _listen_on(api: Api, relay: Relay, host: str, port: int, dialect: Dialect) -> asyncio.Server:
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
    return await loop.create_server(lambda: RelayProtocol(config, relay, dialect), host, port, backlog=BACKLOG)


async def _drain(servers: Sequence[asyncio.Server], relay: Relay, timeout_s: float) -> None:
    """Take no more connections, let what is in flight finish, then end it."""
    for server in servers:
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

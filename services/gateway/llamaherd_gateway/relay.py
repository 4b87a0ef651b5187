"""The hot path inside uvicorn: its httptools protocol, with an `Exchange` in the place of its own cycle on hot routes.

uvicorn keeps doing what it does well: keep-alive timers, flow control, every other route as ASGI. The seam is not a
documented interface of uvicorn; `tests/unit/gateway/test_uvicorn_seam.py` holds it still.
"""

import asyncio
import time
from collections.abc import Sequence
from email.utils import formatdate
from typing import Any, Final

import httptools
import msgspec
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from llamaherd_gateway.access import Access
from llamaherd_gateway.admission import Admission, QueueFull
from llamaherd_gateway.affinity import Affinity, blocks_of
from llamaherd_gateway.dialects.dialect import Dialect, Facts
from llamaherd_gateway.exchange import Exchange
from llamaherd_gateway.guard import Guard, Unacceptable
from llamaherd_gateway.heads import Header, render_headers, render_status_line
from llamaherd_gateway.limits import GOSSIP_S
from llamaherd_gateway.loading import Loader
from llamaherd_gateway.names import LATEST, Names
from llamaherd_gateway.packing import Backlog
from llamaherd_gateway.problems import Problem, UnknownModel
from llamaherd_gateway.projection import Alias, Instance, InstanceKey
from llamaherd_gateway.pursuit import Pursuit
from llamaherd_gateway.residency import Residency
from llamaherd_gateway.routes import find_route
from llamaherd_gateway.routing import pick_instance, unknown_model_message
from llamaherd_gateway.settings import GatewaySettings, ModelSettings, model_settings
from llamaherd_gateway.spans import span_attributes, span_name
from llamaherd_gateway.store import View
from llamaherd_gateway.upstream import Pool
from llamaherd_shared.bus import Bus, Recorded
from llamaherd_shared.errors import HerdError, Unavailable
from llamaherd_shared.events import encode_event
from llamaherd_shared.events.usage import decode_usage, encode_usage
from llamaherd_shared.telemetry import is_tracing, record_span
from llamaherd_shared.upstream_key import upstream_key

PIPELINED: Final = 8
"""Requests that may wait behind the one being answered before the connection is no longer read."""
OFFERS: Final = frozenset({b"upgrade", b"connection", b"http2-settings"})
"""Headers by which a client offers another protocol."""
LINGER_S: Final = 2.0
"""How long the rest of a refused body is read and thrown away: closing at once would reset the answer away."""
SWEEP_S: Final = 1.0
RECORD_S: Final = 0.01
"""How long events are collected. Publishing each one at once would stand in the way of the client's next request."""
BUS_BUSY: Final = 64
"""Messages that wait in the bus, from which on events are kept here: they leave in larger packs when it has room.
Enough for 6,400 messages a second; 64 packs are 13 MB at most, stored well before the bus would send them again."""
BACKLOG_EVENTS: Final = 200_000
"""Events kept here at most: about 120 MB, or 15 s of 12,000 requests a second."""


class QueueIsFull(Unavailable):
    """Too many wait for a model's slots already."""

    code = "queue_full"


class Relay:
    """What all exchanges share."""

    def __init__(
        self,
        *,
        settings: GatewaySettings,
        node: str,
        secret: bytes,
        view: View,
        loader: Loader,
        bus: Bus,
        log: Any,
        own_names: frozenset[str] | None,
        access: Access,
    ) -> None:
        """`own_names`: names of this machine when it listens on loopback only (`guard.py`)."""
        self.settings, self.node, self.loader, self.log = settings, node, loader, log
        self.access = access
        self.guard = Guard(settings.cors_origins, own_names=own_names)
        self.date_header = b""
        self.server_state = ServerState()
        self.connection_closed = asyncio.Event()
        """Set whenever a client connection has ended."""
        self._secret, self._view, self._bus = secret, view, bus
        self._pools: dict[InstanceKey, Pool] = {}
        self._loop = asyncio.get_running_loop()
        self._complete: list[Exchange] = []
        self._backlog = Backlog(BACKLOG_EVENTS)
        self._flushing: asyncio.TimerHandle | None = None
        self._closing = False
        self._dropped = 0
        self.admission = Admission(settings.queue_limit)
        self.pursuits: set[Pursuit] = set()
        """Of requests that wait for a load or a slot."""
        self.names = Names((), {}, None)
        self.residency = Residency()
        self._affinity = Affinity()
        self._facts: dict[InstanceKey, Facts] = {}
        self._settings_of: dict[str, ModelSettings] = {}
        self._unloading: set[asyncio.Task[None]] = set()
        view.on_change.append(self._follow)
        self._follow()

    # Which model and which instance.

    def model_named(self, asked: str) -> str:
        """The model a name means. Raises `UnknownModel`."""
        model = self.names.resolve(asked)
        if model is None:
            raise UnknownModel(unknown_model_message(asked, self._view.table.known))
        return model

    @property
    def known(self) -> Sequence[str]:
        """Names of models that can be asked for."""
        return self._view.table.known

    def has_ready(self, model: str) -> bool:
        return model in self._view.table.ready

    def choose(self, exchange: Exchange) -> Instance | None:
        """The ready instance that should answer; `None`: there is none now."""
        ready = self._view.table.ready.get(exchange.model)
        if not ready:
            return None
        if len(ready) == 1:
            return ready[0]
        blocks = blocks_of(exchange.text)
        in_flight = {key: pool.in_flight for key, pool in self._pools.items()}
        instance = pick_instance(ready, in_flight, self._affinity.find(blocks))
        self._affinity.note(blocks, instance.key)
        return instance

    def facts_of(self, instance: Instance) -> Facts:
        """What is known of the model this instance serves."""
        facts = self._facts.get(instance.key)
        if facts is None:
            file = self._view.fleet.models.get((instance.node, instance.model))
            facts = self._facts[instance.key] = Facts(
                model=instance.model,
                context_tokens=instance.context_tokens,
                slots=max(instance.slots, 1),
                architecture=file.architecture if file is not None else "",
                quantization=file.quantization if file is not None else "",
                capabilities=frozenset(file.capabilities if file is not None else ("completion",)),
            )
        return facts

    def rules_of(self, model: str) -> ModelSettings:
        """What whoever runs the herd decided about this model's requests."""
        found = self._settings_of.get(model)
        if found is None:
            found = self._settings_of[model] = model_settings(self.settings.models, model)
        return found

    def alias_of(self, asked: str) -> Alias | None:
        """What a client's alias brings with it; `None`: this name is none, or brings nothing."""
        aliases = self._view.fleet.aliases
        if not aliases:
            return None
        alias = aliases.get(asked) or aliases.get(asked.removesuffix(LATEST))
        return alias if alias is not None and (alias.system or alias.parameters) else None

    def fallback_of(self, model: str) -> str | None:
        """The model to ask when this one cannot be had."""
        fallback = self.rules_of(model).fallback
        return self.names.resolve(fallback) if fallback is not None else None

    # How long it stays.

    def expires_ns(self) -> dict[str, int]:
        """Models that will be unloaded if nothing is asked of them -> when, Unix nanoseconds."""
        now, now_ns = time.monotonic(), time.time_ns()
        due = {model: self.residency.until_s(model, now) for model in self._view.table.ready}
        return {model: now_ns + int((until - now) * 1e9) for model, until in due.items() if until is not None}

    def _unload(self, model: str) -> None:
        async def unload() -> None:
            try:
                await self.loader.unload(model)
            except HerdError as error:
                self.log.warning("an idle model could not be unloaded", model=model, reason=error.message)

        task = asyncio.create_task(unload())
        self._unloading.add(task)
        task.add_done_callback(self._unloading.discard)

    # Whose turn it is.

    def enter_queue(self, exchange: Exchange) -> bool:
        """`True`: a slot is free. Raises `QueueIsFull`."""
        try:
            return self.admission.enter(exchange.model, exchange.party, exchange)
        except QueueFull:
            limit = self.settings.queue_limit
            text = f"{limit} requests wait for the model {exchange.model!r} already (`gateway.queue_limit`)"
            raise QueueIsFull(text, retry_after_s=5) from None

    def position_of(self, exchange: Exchange) -> int:
        return self.admission.position(exchange.model, exchange.party, exchange)

    def _follow(self) -> None:
        """The herd has changed."""
        table = self._view.table
        made = {alias.alias: alias.model for alias in self._view.fleet.aliases.values()}
        self.names = Names(table.known, {**made, **self.settings.aliases}, self.settings.default_model)
        self._facts.clear()
        self._retire_pools()
        self.admission.set_capacity(
            {
                model: sum(self.rules_of(model).concurrency or max(instance.slots, 1) for instance in ready)
                for model, ready in table.ready.items()
            }
        )
        for pursuit in self.pursuits:
            pursuit.wake()

    # Connections.

    def pool_of(self, instance: Instance) -> Pool:
        """Connections to this spawn of the instance."""
        pool = self._pools.get(instance.key)
        if pool is None or pool.instance.generation < instance.generation:
            key = upstream_key(
                self._secret,
                node=instance.node,
                model=instance.model,
                index=instance.index,
                generation=instance.generation,
            )
            if pool is not None:
                pool.retire(gone=True)
            pool = self._pools[instance.key] = Pool(
                instance, key, loop=self._loop, connect_timeout_s=self.settings.connect_timeout_s
            )
        return pool

    def record(self, exchange: Exchange) -> None:
        """Take note of a complete exchange; its event goes out within `RECORD_S`."""
        self._complete.append(exchange)
        if self._flushing is None:
            self._flushing = self._loop.call_later(RECORD_S, self.flush)

    def flush(self) -> None:
        """Hand the events of complete exchanges to the bus; what it has no room for now is tried again."""
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        complete, self._complete = self._complete, []
        for exchange in complete:
            event = exchange.event()
            if is_tracing():
                record_span(
                    span_name(event),
                    parent=exchange.traceparent,
                    start_ns=event.at_ns - int(event.total_ms * 1e6),
                    end_ns=event.at_ns,
                    attributes=span_attributes(event),
                    failed=event.outcome == "error",
                )
            subject = self._bus.subjects.request(self.node, exchange.subject_model, event.outcome)
            if not self._backlog.add(subject, event.request_id, encode_event(event)):
                self._dropped += 1
        while (self._closing or self._bus.waiting < BUS_BUSY) and (parcel := self._backlog.next()) is not None:
            if not self._bus.offer(parcel.subject, parcel.payload, msg_id=parcel.message_id):
                break
            self._backlog.done(parcel)
        if self._backlog:
            self._flushing = self._loop.call_later(RECORD_S, self.flush)

    async def gossip(self) -> None:
        """Tell other gateways what keys have used here, and hear it from them. Runs until cancelled."""
        limiter, subjects = self.access.limiter, self._bus.subjects

        def hear(recorded: Recorded) -> None:
            try:
                limiter.hear(decode_usage(recorded.data), time.monotonic())
            except msgspec.MsgspecError:
                self.log.debug("a gateway of another version speaks of its usage")

        watch = await self._bus.watch(subjects.usage_of_all(), hear)
        try:
            while True:
                usage = limiter.gossip(time.monotonic())
                if usage is not None:
                    await self._bus.say(subjects.usage(usage.gateway), encode_usage(usage))
                await asyncio.sleep(GOSSIP_S)
        finally:
            await watch.close()

    def _retire_pools(self) -> None:
        """Leave instances that take no more work; those that are gone lose what is still open."""
        for key, pool in list(self._pools.items()):
            now = self._view.fleet.instances.get(key)
            same = now is not None and now.generation == pool.instance.generation
            if same and now is not None and now.state == "ready":
                continue
            del self._pools[key]
            pool.retire(gone=not same or now is None or now.state in ("stopped", "backoff", "failed"))

    def close_idle(self) -> None:
        """On stop, after the last request. From now on the bus is given everything at once: it waits for its own."""
        self._closing = True
        for pool in self._pools.values():
            pool.retire(gone=False)
            pool.abort()
        self.flush()

    async def sweep(self) -> None:
        """Once a second: the date, and everything that has been silent for too long. Runs until cancelled."""
        while True:
            date = formatdate(usegmt=True).encode()
            self.date_header = b"date: %s\r\n" % date
            self.server_state.default_headers = [(b"date", date)]
            now = time.monotonic()
            for protocol in list(self.server_state.connections):
                if isinstance(protocol, RelayProtocol):
                    protocol.check(now)
            for model in self.residency.take_due(now):
                self._unload(model)
            if self._dropped:
                self.log.warning("requests were served that the bus could not take note of", dropped=self._dropped)
                self._dropped = 0
            await asyncio.sleep(SWEEP_S)


class RelayProtocol(HttpToolsProtocol):
    """One client connection."""

    def __init__(self, config: Config, relay: Relay, home: Dialect) -> None:
        super().__init__(config, relay.server_state, {})
        self.relay, self._home = relay, home
        self._max_head_bytes = relay.settings.max_head_bytes
        self._exchange: Exchange | None = None
        """Whose turn it is."""
        self._fed_bytes = 0
        """Since the message began, as far as its head is concerned."""
        self._began = self._head_began = time.monotonic()
        """The first stays; the second is 0 between the heads."""
        self._idle_since = 0.0
        """0 while there is something to answer."""
        self._write_paused_at = 0.0
        self._hosts = 0
        self._host: bytes | None = None
        self._origin: bytes | None = None
        self._cors: tuple[Header, ...] = ()
        """Headers of the answer that tell a browser which pages may read it."""
        self._lingering = False
        self._declining = False
        """Between the head of a request that offers an upgrade and its second reading."""
        self._deaf = False
        """What comes in is no longer read as HTTP."""

    # From the transport.

    def connection_lost(self, exc: Exception | None) -> None:
        waiting = [cycle for cycle, _ in self.pipeline]
        super().connection_lost(exc)
        for cycle in (self._exchange, self.cycle, *waiting):
            if isinstance(cycle, Exchange):
                cycle.client_gone()
        self.pipeline.clear()
        self.relay.connection_closed.set()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._fed_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self._refuse_garbage(error)
        else:
            if not self._head_began:
                self._fed_bytes = 0
            elif self._fed_bytes > self._max_head_bytes:
                self._refuse(self._head_too_large())

    def _decline_upgrade(self, rest: bytes) -> None:
        """Another protocol was offered (Java's HTTP client offers h2c to everybody) and llhttp stopped after the head.

        We speak HTTP/1.1 only: read the same head again without the offer, and what follows it.
        """
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        self._declining = False
        if method == b"CONNECT":
            self._refuse(
                Problem(status=405, message="this is no proxy: CONNECT is not served", code="method_not_allowed")
            )
            return
        lines = [b"%b: %b\r\n" % header for header in self.headers if header[0] not in OFFERS]
        head = b"%b %b HTTP/%b\r\n%b\r\n" % (method, self.url, version, b"".join(lines))
        self.parser = httptools.HttpRequestParser(self)
        self._fed_bytes = 0
        self.data_received(head + rest)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_paused_at = time.monotonic()
        if self._exchange is not None:
            self._exchange.pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._write_paused_at = 0.0
        if self._exchange is not None:
            self._exchange.resume()

    # From the parser.

    def on_message_begin(self) -> None:
        # uvicorn makes its scope here; hot routes do without one.
        self.url = b""
        self.headers = []
        self._hosts = 0
        self._host = self._origin = None
        self._began = self._head_began = time.monotonic()
        self._idle_since = 0.0

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"host":
            self._hosts += 1
            self._host = value
        elif name == b"origin":
            self._origin = value
        elif name == b"transfer-encoding" and value.strip().lower() != b"chunked":
            text = f"the transfer coding {value.decode('latin-1')!r} is not supported: only `chunked` is"
            raise Unacceptable(Problem(status=501, message=text, code="unsupported_transfer_coding"))
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._head_began = 0.0
        if self.parser.should_upgrade():
            self._declining = True
            return
        if self._fed_bytes > self._max_head_bytes and self._head_size() > self._max_head_bytes:
            raise Unacceptable(self._head_too_large())
        if self._hosts != 1 and (self._hosts or self.parser.get_http_version() != "1.0"):
            # RFC 9112, section 3.2: such a message may mean one thing here and another to a proxy in front.
            raise Unacceptable(Problem(status=400, message=f"the request has {self._hosts} Host headers, not one"))
        self._cors = self.relay.guard.judge(self._host, self._origin)
        target = self.url if self.url.startswith(b"/") else _origin_form(self.url)
        path = target.partition(b"?")[0]
        route = find_route(self.parser.get_method(), target, path, self.relay.known)
        if route is None:
            self._start_asgi()
            return
        version = self.parser.get_http_version()
        exchange = Exchange(
            self,
            route,
            target=target,
            headers=self.headers,
            keep_alive=version != "1.0" and self.parser.should_keep_alive(),
            http_1_0=version == "1.0",
            began=self._began,
            cors=render_headers(self._cors),
        )
        before: Any = self.cycle
        self.cycle = exchange  # type: ignore[assignment]
        if before is None or before.response_complete:
            self._take_turn(exchange)
        else:
            self.pipeline.appendleft((exchange, self.app))  # type: ignore[arg-type]
            if len(self.pipeline) >= PIPELINED:
                self.flow.pause_reading()

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _start_asgi(self) -> None:
        url, headers = self.url, self.headers
        super().on_message_begin()
        self.url = url
        self.scope["extensions"] = {"llamaherd.cors": {"headers": self._cors}}
        self.expect_100_continue = (b"expect", b"100-continue") in headers
        self.headers.extend(headers)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        cycle: Any = self.cycle
        if type(cycle) is Exchange:
            cycle.feed(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        cycle: Any = self.cycle
        if self._declining:
            return
        if type(cycle) is not Exchange:
            super().on_message_complete()
        elif self._lingering:
            self.transport.close()
        else:
            cycle.end_of_request()

    # Turns.

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        # uvicorn calls this for the next request in the pipeline.
        if type(cycle) is Exchange:
            self._take_turn(cycle)
        else:
            self._exchange = None
            super()._start_asgi_task(cycle, app)

    def _take_turn(self, exchange: Exchange) -> None:
        self._exchange = exchange
        exchange.take_turn()

    def exchange_finished(self, exchange: Exchange) -> None:
        """An exchange has written its answer."""
        self._exchange = None
        if not exchange.complete:
            self._linger()
        elif not exchange.keep_alive or self._deaf:
            self.transport.close()
        elif self.pipeline:
            # Not at once: a pipeline full of refusals would go as deep into the stack as it is long.
            self.loop.call_soon(self.on_response_complete)
        else:
            self.on_response_complete()

    def on_response_complete(self) -> None:
        """Next in the pipeline, or idle. Replaces uvicorn's, whose timer for every answer costs more than a sweep."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            if len(self.pipeline) < PIPELINED:
                self.flow.resume_reading()
            self._start_asgi_task(cycle, app)
            return
        self.flow.resume_reading()
        if self._deaf:
            self.transport.close()
        elif not self._head_began:
            self._idle_since = time.monotonic()

    def _linger(self) -> None:
        """The client is still sending what was refused: read on for a moment, then close."""
        self._lingering = True
        self.flow.resume_reading()
        self.loop.call_later(LINGER_S, self.transport.close)

    def _refuse_garbage(self, error: httptools.HttpParserError) -> None:
        """This is no HTTP, or HTTP that means different things to different readers."""
        if isinstance(error.__context__, Unacceptable):
            self._refuse(error.__context__.problem)
        else:
            self._refuse(Problem(status=400, message=f"not an HTTP request: {error}"))

    def _refuse(self, problem: Problem) -> None:
        """Answer, if no other answer is under way, and listen no more."""
        self._deaf = True
        cycle: Any = self.cycle
        if cycle is not None and not cycle.response_complete:
            if isinstance(cycle, Exchange) and not cycle.complete:
                # The body itself is broken: chunk sizes that are none, for one.
                if cycle is self._exchange:
                    cycle.answer_problem(problem)
                else:
                    self.transport.abort()
            return
        body = self._home.render_problem(problem, "")
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(render_status_line(problem.status) + head + body)
        self.loop.call_later(LINGER_S, self.transport.close)

    def _head_too_large(self) -> Problem:
        limit = self._max_head_bytes
        return Problem(status=431, message=f"the request's head is larger than {limit} bytes")

    # Time.

    def check(self, now: float) -> None:
        """Called about once a second (`Relay.sweep`)."""
        settings = self.relay.settings
        if self._head_began and now - self._head_began > settings.receive_timeout_s:
            self.transport.abort()
        elif self._write_paused_at and now - self._write_paused_at > settings.stalled_client_s:
            self.transport.abort()
        elif self._exchange is not None:
            self._exchange.check(now)
        elif self._idle_since and now - self._idle_since > settings.keep_alive_s:
            self.transport.close()

    def shutdown(self) -> None:
        """Take no more requests; answer the one in flight, then close."""
        super().shutdown()
        if self._exchange is not None:
            self._exchange.keep_alive = False

    def stop(self) -> None:
        """Waited long enough: end what is in flight with an error, and close."""
        if self._exchange is not None:
            self._exchange.stop()
        if not self.transport.is_closing():
            self.transport.close()


def _origin_form(url: bytes) -> bytes:
    """Path and query of an absolute URL (RFC 9112, section 3.2.2); anything else as it is."""
    if not url.startswith((b"http://", b"https://")):
        return url
    parsed = httptools.parse_url(url)
    path: bytes = parsed.path or b"/"
    return path + b"?" + parsed.query if parsed.query else path

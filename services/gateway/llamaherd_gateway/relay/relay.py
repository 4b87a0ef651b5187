"""What all requests of a gateway share: models, instances, turns, and the way of their facts to the bus."""

import asyncio
import time
from collections.abc import Sequence
from email.utils import formatdate
from typing import Any, Final, Protocol, cast

import msgspec
from uvicorn.server import ServerState

from llamaherd_gateway.access.gate import Access
from llamaherd_gateway.access.guard import Guard
from llamaherd_gateway.access.limits import GOSSIP_S
from llamaherd_gateway.conversations import Conversations
from llamaherd_gateway.dialects.dialect import Facts
from llamaherd_gateway.projection import Alias, Fleet, Instance, InstanceKey, Spawn
from llamaherd_gateway.relay.exchange import Exchange
from llamaherd_gateway.relay.packing import Backlog
from llamaherd_gateway.relay.pursuit import Pursuit
from llamaherd_gateway.relay.spans import span_attributes, span_name
from llamaherd_gateway.relay.upstream import Pool
from llamaherd_gateway.relay.ways import Target, Way
from llamaherd_gateway.routing.admission import Admission, QueueFull
from llamaherd_gateway.routing.affinity import Affinity, blocks_of
from llamaherd_gateway.routing.cards import LOADED
from llamaherd_gateway.routing.demands import demand
from llamaherd_gateway.routing.loading import Loader
from llamaherd_gateway.routing.names import REMEMBERED, Names, is_pattern
from llamaherd_gateway.routing.policy import Policy
from llamaherd_gateway.routing.presets import preset_of
from llamaherd_gateway.routing.residency import Residency
from llamaherd_gateway.routing.table import pick_instance
from llamaherd_gateway.settings import GatewaySettings
from llamaherd_gateway.store import View
from llamaherd_shared.bus import Bus, Recorded
from llamaherd_shared.errors import HerdError, Unavailable
from llamaherd_shared.events import encode_event
from llamaherd_shared.events.usage import GatewayUsage, decode_usage, encode_usage
from llamaherd_shared.model_options import LoadOptions
from llamaherd_shared.telemetry import is_tracing, record_span
from llamaherd_shared.upstream_key import upstream_key

SWEEP_S: Final = 1.0
UNLOAD_AGAIN_S: Final = 10.0
"""An idle model whose supervisor did not take the unload is tried again after this."""
SHUN_S: Final = 10.0
"""How long an instance that broke a connection is asked last: until it is known what has become of it."""
RECORD_S: Final = 0.02
"""How long events are collected. A message for each would cost more than the request it tells of."""
BUS_BUSY: Final = 64
"""Messages that wait in the bus, from which on events are kept here: they leave in larger packs when it has room.
Enough for 6,400 messages a second; 64 packs are 13 MB at most, stored well before the bus would send them again."""
BACKLOG_EVENTS: Final = 200_000
"""Events kept here at most: about 120 MB, or 15 s of 12,000 requests a second."""


class Checked(Protocol):
    """A client connection (`protocol.RelayProtocol`)."""

    def check(self, now: float) -> None:
        """Called about once a second, with the monotonic time."""

    def giver_of(self, answer_id: str) -> Instance | None:
        """The instance that gives this answer, if it goes to this client."""


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
        policy: Policy,
        conversations: Conversations,
    ) -> None:
        """`own_names`: names of this machine when it listens on loopback only (`guard.py`)."""
        self.settings, self.node, self.loader, self.log = settings, node, loader, log
        self.access, self.policy, self.conversations = access, policy, conversations
        self.guard = Guard(settings.cors_origins, own_names=own_names)
        self.date_header = b""
        self.server_state = ServerState()
        self.connection_closed = asyncio.Event()
        """Set whenever a client connection has ended."""
        self._secret, self._view, self._bus = secret, view, bus
        self._pools: dict[InstanceKey, Pool] = {}
        self._loop = asyncio.get_running_loop()
        self._complete: list[Exchange] = []
        """Their events are not written yet."""
        self._writing = False
        """Whether they are about to be."""
        self._backlog = Backlog(BACKLOG_EVENTS)
        self._publishing: asyncio.Handle | None = None
        self._closing = False
        self._dropped = 0
        self.admission = Admission(settings.queue_limit)
        self.pursuits: set[Pursuit] = set()
        """Of requests that wait for a load or a slot."""
        self.names = Names((), {}, None)
        self.residency = Residency(policy.of)
        self._loaded: set[str] = set()
        """Models in memory, or on the way to it."""
        self._affinity = Affinity()
        self._shunned: dict[Spawn, float] = {}
        """Until when, on the monotonic clock."""
        self._facts: dict[InstanceKey, Facts] = {}
        self._ways: dict[str, Way | None] = {}
        """By the name that was asked for."""
        self._unloading: set[asyncio.Task[None]] = set()
        view.on_change.append(self._follow)
        policy.on_change.append(self._follow)
        self._follow()

    # Which model and which instance.

    @property
    def fleet(self) -> Fleet:
        """The herd as it is now: another object after every change."""
        return self._view.fleet

    @property
    def known(self) -> Sequence[str]:
        """Names of models that can be asked for."""
        return self._view.table.known

    def has_ready(self, model: str) -> bool:
        return model in self._view.table.ready

    def way_of(self, name: str) -> Way | None:
        """Where each request for a name goes that asks for nothing special; `None`: none is ready, or several."""
        try:
            return self._ways[name]
        except KeyError:
            if len(self._ways) >= REMEMBERED:
                self._ways.clear()
            way = self._ways[name] = self._find_way(name)
            return way

    def _find_way(self, name: str) -> Way | None:
        model = self.names.resolve(name)
        if model is None:
            return None
        ready = self._view.table.ready_for(model, self._demand(None, name, model))
        return Way(model, self.target_of(ready[0], name, model)) if len(ready) == 1 else None

    def target_of(self, instance: Instance, name: str, model: str) -> Target:
        """An instance that has been chosen for a request; `name`: as its model was asked for."""
        facts, alias = self._facts_of(instance), self._alias_of(name)
        if alias is not None:
            facts = msgspec.structs.replace(facts, preset=preset_of(alias))
        return Target(instance, self._pool_of(instance), facts, self.policy.of(model).rules)

    def choose(self, exchange: Exchange, *, but: Instance | None = None) -> Instance | None:
        """The ready instance that should answer, another one than `but`; `None`: there is none now."""
        ready = self._view.table.ready_for(exchange.model, self.demand_of(exchange))
        if but is not None:
            ready = tuple(each for each in ready if each.spawn != but.spawn)
        if not ready:
            return None
        if len(ready) == 1:
            return ready[0]
        if self._shunned:
            ready = self._without_shunned(ready) or ready
        if exchange.asked.answer_id and (giver := self._giver_of(exchange.asked.answer_id)) in ready:
            return giver
        blocks = blocks_of(exchange.text)
        in_flight = {key: pool.in_flight for key, pool in self._pools.items()}
        instance = pick_instance(ready, in_flight, self._affinity.find(blocks))
        self._affinity.note(blocks, instance.key)
        return instance

    def shun(self, instance: Instance) -> None:
        """It broke a connection without a byte: others are asked first for a while. Its host may be gone."""
        if instance.node in self._view.away:
            self._view.write_off(instance)
        else:
            self._shunned[instance.spawn] = time.monotonic() + SHUN_S

    def _without_shunned(self, ready: tuple[Instance, ...]) -> tuple[Instance, ...]:
        now = time.monotonic()
        self._shunned = {spawn: until_s for spawn, until_s in self._shunned.items() if until_s > now}
        return tuple(instance for instance in ready if instance.spawn not in self._shunned)

    def possible_givers(self, exchange: Exchange) -> Sequence[Instance]:
        """One of these gives the answer that a request is about, through another gateway; empty: it is known which."""
        ready = self._view.table.ready.get(exchange.model, ())
        if not exchange.asked.answer_id or len(ready) < 2 or self._giver_of(exchange.asked.answer_id) in ready:
            return ()
        return ready

    def _giver_of(self, answer_id: str) -> Instance | None:
        """The instance that gives this answer through this gateway; `None`: it is none of ours, or over."""
        found = (cast(Checked, protocol).giver_of(answer_id) for protocol in self.server_state.connections)
        return next((instance for instance in found if instance is not None), None)

    def _facts_of(self, instance: Instance) -> Facts:
        """What is known of the model this instance serves."""
        facts = self._facts.get(instance.key)
        if facts is None:
            file = self._view.fleet.models.get((instance.node, instance.model))
            facts = self._facts[instance.key] = Facts(
                model=instance.model,
                context_tokens=instance.context_tokens,
                batch_tokens=instance.options.get("ubatch_tokens", 0),
                slots=max(instance.slots, 1),
                architecture=file.architecture if file is not None else "",
                quantization=file.quantization if file is not None else "",
                capabilities=frozenset(file.capabilities if file is not None else ("completion",)),
            )
        return facts

    def _alias_of(self, asked: str) -> Alias | None:
        """What a client's alias brings with it; `None`: this name is none, or brings nothing."""
        aliases = self._view.fleet.aliases
        name = self.names.spelling(asked) if aliases else None
        alias = aliases.get(name) if name is not None and name not in self.policy.aliases else None
        if alias is None or not (alias.system or alias.messages or alias.options):
            return None
        # A model's own name wins over an alias of that name.
        return alias if alias.model == self.names.resolve(asked) else None

    def demand_of(self, exchange: Exchange) -> LoadOptions | None:
        """What its model must have been loaded with; `None`: whatever it was."""
        return self._demand(exchange.asked.load, exchange.asked.model, exchange.model)

    def _demand(self, load: LoadOptions | None, name: str, model: str) -> LoadOptions | None:
        alias = self._alias_of(name)
        if load is None and alias is None:
            return None
        training = self._view.table.training.get(model, 0)
        return demand(load, alias, self.policy.of(model), training_tokens=training)

    def fallback_of(self, model: str) -> str | None:
        """The model to ask when this one cannot be had."""
        fallback = self.policy.of(model).fallback
        return self.names.resolve(fallback) if fallback is not None else None

    # How long it stays.

    def expires_ns(self) -> dict[str, int]:
        """Models that will be unloaded if nothing is asked of them -> when, Unix nanoseconds."""
        now, now_ns = time.monotonic(), time.time_ns()
        due = {model: self.residency.until_s(model, now) for model in self._view.table.ready}
        return {model: now_ns + int((until - now) * 1e9) for model, until in due.items() if until is not None}

    async def unload_unused(self, model: str) -> bool:
        """Unload it now if nobody but the one who asks uses it. Raises `HerdError`; `False`: somebody may."""
        if model in self._loaded:
            if not self.residency.is_ours_alone(model, time.monotonic()):
                return False
            await self.loader.unload(model)
        self.residency.forget(model)
        return True

    def _unload(self, model: str) -> None:
        async def unload() -> None:
            try:
                await self.loader.unload(model)
            except HerdError as error:
                self.log.warning("an idle model could not be unloaded", model=model, reason=error.message)
                self.residency.say(model, UNLOAD_AGAIN_S, time.monotonic())

        task = asyncio.create_task(unload())
        self._unloading.add(task)
        task.add_done_callback(self._unloading.discard)

    # Whose turn it is.

    def enter_queue(self, exchange: Exchange) -> bool:
        """`True`: a slot is free. Raises `QueueIsFull`."""
        try:
            return self.admission.enter(exchange.model, exchange)
        except QueueFull:
            limit = self.settings.queue_limit
            text = f"{limit} requests wait for the model {exchange.model!r} already (`gateway.queue_limit`)"
            raise QueueIsFull(text, retry_after_s=5) from None

    def position_of(self, exchange: Exchange) -> int:
        return self.admission.position(exchange.model, exchange)

    def _follow(self) -> None:
        """The herd has changed."""
        table = self._view.table
        known = set(table.known)
        # A name that was given to a model before its file came, or that has outlived it, means nothing.
        made = {alias.alias: alias.model for alias in self._view.fleet.aliases.values() if alias.model in known}
        # Whoever asks for one of these is told why it cannot be had, unless the very name means something else.
        unusable = {name: name for name in table.unusable if not is_pattern(name)}
        self.names = Names(table.known, {**unusable, **made, **self.policy.aliases}, self.policy.default_model)
        self._facts.clear()
        self._ways.clear()
        instances = self._view.fleet.instances.values()
        self._loaded = {instance.model for instance in instances if instance.state in LOADED}
        self.residency.loaded(self._loaded, ready=table.ready.keys())
        self._retire_pools()
        self.admission.set_capacity(
            {
                model: sum(self.policy.of(model).concurrency or max(instance.slots, 1) for instance in ready)
                for model, ready in table.ready.items()
            }
        )
        for pursuit in self.pursuits:
            pursuit.wake()

    # Connections.

    def _pool_of(self, instance: Instance) -> Pool:
        """Connections to this spawn of the instance."""
        pool = self._pools.get(instance.key)
        if pool is None or pool.instance.generation < instance.generation:
            key = upstream_key(
                self._secret,
                node=instance.node,
                model=instance.model,
                index=instance.index,
                generation=instance.generation,
                router_generation=instance.router_generation,
            )
            if pool is not None:
                pool.retire(gone=True)
            pool = self._pools[instance.key] = Pool(
                instance, key, loop=self._loop, connect_timeout_s=self.settings.connect_timeout_s
            )
        return pool

    def record(self, exchange: Exchange) -> None:
        """Take note of a complete exchange; its event is written in a spare moment, and goes out within `RECORD_S`."""
        self._complete.append(exchange)
        if self._publishing is None:
            self._publishing = self._loop.call_later(RECORD_S, self._publish)

    def spare_moment(self) -> None:
        """A llama-server has been asked: until it answers there is time for what nobody waits for.

        Right behind an answer there is none: a client that asks one thing after the other has the next request ready.
        """
        if self._complete and not self._writing:
            self._writing = True
            self._loop.call_soon(self._write_events)

    def flush(self) -> None:
        """Hand the events of all complete exchanges to the bus; what it has no room for now is tried again."""
        if self._publishing is not None:
            self._publishing.cancel()
        self._publish()

    def _write_events(self) -> None:
        tracing = is_tracing()
        for exchange in self._complete:
            event = exchange.event()
            if tracing:
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
        self._complete.clear()
        self._writing = False

    def _publish(self) -> None:
        self._write_events()
        while (self._closing or self._bus.waiting < BUS_BUSY) and (parcel := self._backlog.next()) is not None:
            if not self._bus.offer(parcel.subject, parcel.payload, msg_id=parcel.message_id):
                break
            self._backlog.done(parcel)
        self._publishing = None
        if self._backlog:
            self._publishing = self._loop.call_later(RECORD_S, self._publish)

    async def gossip(self) -> None:
        """Tell other gateways what keys and models are used for here, and hear it from them.

        Unloads what nobody has used for as long as clients wanted it to stay. Runs until cancelled.
        """
        limiter, residency, subjects = self.access.limiter, self.residency, self._bus.subjects
        gateway = self.access.gateway

        def hear(recorded: Recorded) -> None:
            now = time.monotonic()
            try:
                usage = decode_usage(recorded.data)
            except msgspec.MsgspecError:
                self.log.debug("a gateway of another version speaks of its usage")
                return
            limiter.hear(usage, now)
            if usage.gateway != gateway:
                residency.hear(usage.gateway, usage.models, now)

        watch = await self._bus.watch(subjects.usage_of_all(), hear)
        try:
            while True:
                now = time.monotonic()
                usage, uses = limiter.gossip(now), residency.tell(now)
                if usage is not None or uses is not None:
                    told = GatewayUsage(gateway, usage.keys if usage is not None else [], uses)
                    await self._bus.say(subjects.usage(gateway), encode_usage(told))
                for model in residency.take_due(now):
                    self._unload(model)
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
            pool.retire(gone=not same or now is None or now.state in ("stopped", "waiting", "backoff", "failed"))

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
                cast(Checked, protocol).check(now)
            if self._dropped:
                self.log.warning("requests were served that the bus could not take note of", dropped=self._dropped)
                self._dropped = 0
            await asyncio.sleep(SWEEP_S)

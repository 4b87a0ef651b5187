"""Who gets this node's memory: the shell around `Ledger`. It measures, books, unloads for others, and tells why.

Owners ask it before they spawn and hear from it when the memory is theirs; it asks owners to leave. While a load waits
it looks again several times a second, otherwise every few seconds: what instances use, and which were used last.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Final, Protocol

import msgspec

from llamaherd_shared.commands import Offer
from llamaherd_shared.errors import NoMemory
from llamaherd_shared.model_spec import ModelSpec
from llamaherd_shared.service import Service
from llamaherd_supervisor.budget import (
    PLACES,
    Bytes,
    add,
    make_budget,
    render_bytes,
    render_device,
    subtract,
    within_reach,
)
from llamaherd_supervisor.devices import Devices, Reading
from llamaherd_supervisor.estimate import Estimate, Place, measured
from llamaherd_supervisor.eviction import Await, Evict, Grant, Key, Refuse, Wish
from llamaherd_supervisor.gpu_listing import visible_numbers
from llamaherd_supervisor.launching import Plan
from llamaherd_supervisor.ledger import Ledger, Standing
from llamaherd_supervisor.lifecycle import EVICTED, Instance, Wanted
from llamaherd_supervisor.needs import Need, Needs, in_router
from llamaherd_supervisor.observations import MemoryAwaited, MemoryMeasured, MemoryRefused, Observation
from llamaherd_supervisor.router.preset import find_obstacle
from llamaherd_supervisor.settings import SupervisorSettings
from llamaherd_supervisor.work import Use

_BOOK_S: Final = 0.25
"""Between two looks while a load waits."""
_LOOK_S: Final = 5.0
"""Between two looks otherwise."""
_PROBE_S: Final = 1.0
"""Who does not say by then whether he works is taken to."""
_IDLE_S: Final = 0.6
"""Without work for so long it is idle: one with a single slot has a pause between any two of its requests."""
_GROWN: Final = 1.1
"""Growth of what an instance uses that is worth a fact."""


class Tenant(Protocol):
    """An instance, as far as its memory goes."""

    key: Key
    instance: Instance

    @property
    def is_ready(self) -> bool: ...

    @property
    def is_leaving(self) -> bool: ...

    @property
    def pid(self) -> int | None:
        """Of its process; `None` without one."""

    def tell(self, seen: Observation) -> None: ...

    def ask(self, wanted: Wanted) -> None: ...

    def wake(self) -> None:
        """Look again what to do."""

    async def probe_use(self, *, timeout_s: float) -> Use | None: ...


class _Stay(msgspec.Struct):
    """What was seen of one spawn since it was ready."""

    generation: int
    first: Bytes
    peak: dict[str, int]
    told: Bytes = {}
    used_ns: int = 0
    newest: int = -1
    """Task it worked on last."""
    asked_s: float = 0.0
    """When it was asked last, on the machine's monotonic clock: of many loads at once each leads to a look."""
    busy: bool = False


class Memory:
    """One node's. Use from one event loop."""

    def __init__(
        self,
        service: Service,
        settings: SupervisorSettings,
        *,
        tenants: Mapping[Key, Tenant],
        spec: Callable[[str], ModelSpec],
    ) -> None:
        self._service, self._settings = service, settings
        self._tenants, self._spec = tenants, spec
        self._devices = Devices()
        self._found = asyncio.Event()
        """Set once it is known which GPUs there are."""
        self._ledger = Ledger(settings.rules())
        self._needs_of = Needs()
        self._needs: dict[Key, Need] = {}
        """Of what waits or runs."""
        self._stays: dict[Key, _Stay] = {}
        self._changed = asyncio.Event()
        self._reading: asyncio.Task[Reading] | None = None
        """The last look at all devices, which may go on."""

    async def run(self, llama_server: str, environment: Mapping[str, str], learned: Mapping[str, Bytes]) -> None:
        """Book, for ever. `learned`: what was measured before, by plan."""
        self._needs_of.recall(learned)
        await self._devices.find(llama_server, environment)
        self._found.set()
        while True:
            pause_s = _BOOK_S if self._ledger.waiting else _LOOK_S
            try:
                async with asyncio.timeout(pause_s):
                    await self._changed.wait()
            except TimeoutError:
                pass
            self._changed.clear()
            await self._book()

    # What owners and commands ask.

    def is_promised(self, key: Key) -> bool:
        """Whether it may spawn."""
        return self._ledger.is_promised(key)

    def context_tokens(self, key: Key) -> int | None:
        """The context that was chosen because no more fits; `None`: as it was asked for."""
        return self._ledger.estimate(key).context_tokens

    async def wish(self, tenant: Tenant, plan: Plan, *, asked_ns: int, may_evict: bool) -> None:
        """It is to be loaded; it hears when it may, or why not. Asking twice is asking once.

        What nobody has asked for since the supervisor started (`asked_ns` 0) makes nobody go.
        """
        key = tenant.key
        self._needs[key] = need = await self._need(key, plan)
        may_evict = may_evict and asked_ns > 0
        self._ledger.wish(self._wish(key, need.estimate, asked_ns=asked_ns or time.time_ns(), may_evict=may_evict))
        self._changed.set()

    async def check(self, key: Key, plan: Plan, *, may_evict: bool = True) -> None:
        """Raises `NoMemory` when this load would be refused now; nothing is booked."""
        need = await self._need(key, plan)
        reading = await self._read()
        others = {name: standing for name, standing in self._standings(reading).items() if name != key}
        wish = self._wish(key, need.estimate, asked_ns=time.time_ns(), may_evict=may_evict)
        refusal = self._ledger.refusal(wish, others, self._limits(reading), now_ns=time.time_ns())
        if refusal is not None:
            raise NoMemory(self._explain(refusal, reading))

    async def offer(self, key: Key, plan: Plan, *, load_s: float | None, may_evict: bool = True) -> Offer:
        """What this load would be like here. Raises `NoMemory`."""
        need = await self._need(key, plan)
        reading, now_ns = await self._read(), time.time_ns()
        wish = self._wish(key, need.estimate, asked_ns=now_ns, may_evict=may_evict)
        standings, limits = self._standings(reading), self._limits(reading)
        decision, evicts_bytes, free_ratio = self._ledger.preview(wish, standings, limits, now_ns=now_ns)
        if isinstance(decision, Refuse):
            raise NoMemory(self._explain(decision, reading))
        return Offer(
            node=self._service.common.node,
            evicts_bytes=evicts_bytes,
            waits=isinstance(decision, Await),
            free_ratio=free_ratio,
            load_s=load_s,
        )

    async def adopt(self, tenant: Tenant, plan: Plan) -> None:
        """Its process runs already, whatever there is."""
        self._needs[tenant.key] = need = await self._need(tenant.key, plan)
        self._ledger.promise(tenant.key, need.estimate)

    def release(self, key: Key) -> None:
        """It neither runs nor will."""
        if self._ledger.release(key, now_ns=time.time_ns()):
            self._stays.pop(key, None)
            self._changed.set()

    def look(self) -> None:
        """Something has changed: look again soon."""
        self._changed.set()

    # Booking.

    async def _book(self) -> None:
        if self._ledger.waiting or len(self._running()) > 1:
            await asyncio.gather(*(self._probe(tenant) for tenant in self._running() if tenant.is_ready))
        reading = await self._read()
        self._note(reading)
        if not self._ledger.waiting:
            return
        wishes = dict(self._ledger.waiting)
        decisions = self._ledger.decide(self._standings(reading), self._limits(reading), now_ns=time.time_ns())
        for key, decision in decisions.items():
            tenant = self._tenants[key]
            match decision:
                case Grant():
                    tenant.wake()
                case Evict(victims=victims):
                    for victim in victims:
                        self._evict(victim, wishes[key])
                case Await(why=why):
                    tenant.tell(MemoryAwaited(why))
                case Refuse():
                    tenant.tell(MemoryRefused(self._explain(decision, reading)))

    def _evict(self, key: Key, wish: Wish) -> None:
        cause = f"{EVICTED}{wish.model}"
        self._service.log.info("unloading a model to make room", model=key[0], room_for=wish.model)
        self._tenants[key].ask(Wanted(wanted=False, cause=cause, asked_ns=time.time_ns()))

    def _explain(self, refusal: Refuse, reading: Reading) -> str:
        budget, limits = self._budget(reading), self._limits(reading)
        taken = [
            f"other programs use {render_bytes(device.others_bytes)} of {render_device(device.name)}"
            for device in reading.devices
            if limits[device.name] < budget[device.name]
        ]
        return refusal.why + (f"; {', '.join(taken)}" if taken else "")

    def _running(self) -> list[Tenant]:
        return [tenant for tenant in self._tenants.values() if tenant.pid is not None]

    def _standings(self, reading: Reading) -> dict[Key, Standing]:
        return {tenant.key: self._standing(tenant, reading) for tenant in self._running()}

    def _standing(self, tenant: Tenant, reading: Reading) -> Standing:
        spec, stay = self._spec(tenant.key[0]), self._stays.get(tenant.key)
        since_ns = tenant.instance.since_ns
        return Standing(
            ready=tenant.is_ready and not tenant.is_leaving,
            leaving=tenant.is_leaving,
            busy=stay is not None and stay.busy,
            uses=self._uses(tenant.key, stay.peak if stay is not None else reading.uses.get(tenant.key, {})),
            pinned=spec.pin and tenant.key[1] < spec.replicas,
            spare=tenant.key[1] >= spec.replicas,
            priority=spec.priority,
            group=spec.group,
            ready_ns=since_ns,
            used_ns=max(since_ns, stay.used_ns) if stay is not None else since_ns,
        )

    def _uses(self, key: Key, seen: Bytes) -> Bytes:
        """What was measured, and what cannot be."""
        need = self._needs.get(key)
        return add(seen, *(part.takes for part in need.places)) if need is not None and seen else seen

    def _wish(self, key: Key, found: Estimate, *, asked_ns: int, may_evict: bool) -> Wish:
        spec = self._spec(key[0])
        return Wish(
            key=key,
            estimate=found,
            asked_ns=asked_ns,
            priority=spec.priority,
            group=spec.group,
            may_evict=may_evict,
        )

    # Measuring.

    async def _read(self) -> Reading:
        """One look serves all who ask for it while it goes on: it takes longer the more instances there are."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._look_at_devices())
        return await asyncio.shield(self._reading)

    async def _look_at_devices(self) -> Reading:
        pids = {tenant.key: tenant.pid for tenant in self._running() if tenant.pid is not None}
        assumed = {tenant.key: self._ledger.estimate(tenant.key).needs for tenant in self._running() if tenant.is_ready}
        return await asyncio.to_thread(self._devices.read, pids, assumed)

    async def _probe(self, tenant: Tenant) -> None:
        stay = self._stays.get(tenant.key)
        if stay is None or time.monotonic() < stay.asked_s + _BOOK_S:
            return
        stay.asked_s = time.monotonic()
        use = await tenant.probe_use(timeout_s=_PROBE_S)
        now_ns = time.time_ns()
        if use is None or use.busy or use.newest != stay.newest:
            stay.used_ns = now_ns
        stay.busy = now_ns - stay.used_ns < _IDLE_S * 1e9
        stay.newest = use.newest if use is not None else stay.newest

    def _note(self, reading: Reading) -> None:
        """Keep what those use that are ready, and tell it once, and when it has grown."""
        for key, uses in reading.uses.items():
            tenant = self._tenants[key]
            generation = tenant.instance.generation
            if not tenant.is_ready:
                continue
            stay = self._stays.get(key)
            if stay is None or stay.generation != generation:
                stay = self._stays[key] = _Stay(generation, first=uses, peak=dict(uses))
            for device, count in uses.items():
                stay.peak[device] = max(count, stay.peak.get(device, 0))
            if any(count > stay.told.get(device, 0) * _GROWN for device, count in stay.peak.items()):
                self._tell(tenant, stay)

    def _tell(self, tenant: Tenant, stay: _Stay) -> None:
        stay.told = dict(stay.peak)
        need = self._needs.get(tenant.key)
        if need is None:
            return
        needs = self._needs_of.learn(need, first=stay.first, peak=stay.peak)
        parts = (*measured(needs).parts, *need.places)
        self._ledger.promise(tenant.key, msgspec.structs.replace(need.estimate, parts=parts))
        tenant.tell(
            MemoryMeasured(
                generation=stay.generation,
                uses=stay.told,
                estimated=need.formula.needs,
                needs=needs,
                plan=need.plan,
            )
        )

    # Estimating.

    def _budget(self, reading: Reading) -> dict[str, int]:
        return make_budget(reading.devices, self._settings.memory_budget, self._settings.vram_budget)

    def _limits(self, reading: Reading) -> dict[str, int]:
        places = {PLACES: self._settings.router_max_models}
        return within_reach(self._budget(reading), reading.devices) | (places if places[PLACES] else {})

    async def _need(self, key: Key, plan: Plan) -> Need:
        """With all the room there would be if everything that may be unloaded was."""
        await self._found.wait()
        reading = await self._read()
        residents = self._ledger.residents(self._standings(reading))
        pinned = [each.holds for each in residents if each.pinned and each.key != key]
        room = subtract(self._limits(reading), *pinned)
        need = await self._needs_of.find(plan, Place(room=room, gpus=self._gpus_for(key)))
        takes_place = plan.router and self._settings.router_max_models and not find_obstacle(key[0], plan)
        return in_router(need) if takes_place else need

    def _gpus_for(self, key: Key) -> tuple[str, ...]:
        """Those that its process will see."""
        model, index = key
        numbers = visible_numbers(self._spec(model).of_instance(index).env)
        if numbers is None:
            return self._devices.names
        by_number = {listed.nvidia: name for name, listed in zip(self._devices.names, self._devices.gpus, strict=True)}
        return tuple(by_number[number] for number in numbers if number in by_number)

"""A node without processes, clock or bus: the supervisor's decisions, performed at once, on models that take memory.

It does what `handlers.py` and `memory.py` do: asks `lifecycle` what is next for each instance and `Ledger` who may have
memory, performs that, and reports what a process would do then. What must never happen is asserted on the way.
"""

from dataclasses import dataclass, field

from llamaherd_supervisor.budget import RAM, add, lacking
from llamaherd_supervisor.estimate import Estimate, Part
from llamaherd_supervisor.eviction import Await, Evict, Group, Key, Refuse, Rules, Wish
from llamaherd_supervisor.ledger import Ledger, Standing
from llamaherd_supervisor.lifecycle import (
    ALIVE,
    EVICTED,
    Drain,
    Forget,
    Instance,
    Limits,
    Signal,
    Spawn,
    State,
    Vitals,
    Wait,
    Wanted,
    ends_promise,
    evolve,
    is_leaving,
    may_have_memory,
    next_action,
    notice,
    observe,
)
from llamaherd_supervisor.observations import (
    DrainBegan,
    Forgotten,
    HealthAnswered,
    HealthMissed,
    LoadStood,
    MemoryAwaited,
    MemoryRefused,
    Observation,
    ProcessExited,
    Signalled,
    SlotsCounted,
    Spawned,
)
from llamaherd_supervisor.reconcile import wanted_after_restart

SECOND = 10**9
_STEP_S = 4
_ANSWER_S = 45
"""Of an endless stream of requests each takes so long: longer than a drain may take otherwise."""
_PATIENCE_S = 3000


@dataclass(frozen=True)
class Model:
    needs: int
    used_ratio: float = 1.0
    """How much of that it takes once it is ready."""
    priority: int = 0
    group: str = ""
    pinned: bool = False
    replicas: int = 1
    max_replicas: int = 1

    @property
    def uses(self) -> int:
        return max(1, int(self.needs * self.used_ratio))


@dataclass
class Process:
    loading: bool = True
    busy: int = 0
    deaf: bool = False
    """SIGTERM does not end it."""
    hung: bool = False
    """It answers nothing any more."""


@dataclass
class Place:
    """All that is known of one instance."""

    instance: Instance
    vitals: Vitals = field(default_factory=Vitals)
    wanted: Wanted = field(default_factory=lambda: Wanted(wanted=False))
    process: Process | None = None
    ready_ns: int = 0
    used_ns: int = 0

    @property
    def key(self) -> Key:
        return self.instance.model, self.instance.index


class SimulatedNode:
    """One supervisor's life, and those after it."""

    def __init__(self, models: dict[str, Model], limit: int, rules: Rules, limits: Limits) -> None:
        self.models, self.memory, self._limits = models, {RAM: limit}, limits
        self.rules, self.ledger = rules, Ledger(rules)
        self.places: dict[Key, Place] = {
            (name, index): Place(Instance(node="n", model=name, index=index))
            for name, model in models.items()
            for index in range(max(model.replicas, model.max_replicas))
        }
        self._measured: set[str] = set()
        """Models that have been ready: what they took then is their estimate."""
        self.now_ns = 10**6 * SECOND
        self.entered: set[State] = {State.STOPPED}
        self.left: set[State] = set()

    # What happens to a node.

    def load(self, name: str) -> None:
        """As many as there are to be at least, and those that run beyond that, which make nobody go for that."""
        least = self.models[name].replicas
        for (_, index), place in self._places_of(name).items():
            ended = place.instance.state in (State.STOPPED, State.FAILED)
            if index < least or place.wanted.wanted:
                may_evict = ended or not place.wanted.wanted or place.wanted.may_evict
                place.wanted = Wanted(wanted=True, asked_ns=self.now_ns, may_evict=may_evict)

    def grow(self, name: str) -> None:
        """A gateway asks for one more, which nobody makes room for."""
        places = self._places_of(name)
        running = [
            key for key, place in places.items() if place.wanted.wanted and place.instance.state is not State.FAILED
        ]
        key = next((key for key in places if key not in running), None)
        if not running or key is None or len(running) >= self.models[name].max_replicas:
            return
        others = {other: standing for other, standing in self._standings().items() if other != key}
        wish = self._wish(key, asked_ns=self.now_ns, may_evict=False)
        if self.ledger.is_promised(key) or not self.ledger.refusal(wish, others, self.memory, now_ns=self.now_ns):
            places[key].wanted = Wanted(wanted=True, asked_ns=self.now_ns, may_evict=False)

    def shrink(self, name: str) -> None:
        """Those beyond the least have been idle for long."""
        for (_, index), place in self._places_of(name).items():
            busy = place.process is not None and place.process.busy
            if index >= self.models[name].replicas and place.wanted.wanted and not busy:
                place.wanted = Wanted(wanted=False, cause="idle", asked_ns=self.now_ns)

    def unload(self, name: str) -> None:
        for place in self._places_of(name).values():
            place.wanted = Wanted(wanted=False, cause="unload", asked_ns=self.now_ns)

    def begin_request(self, name: str) -> None:
        """A gateway sends one where the model is ready and has least to do, and asks for its load elsewhere."""
        places = self._places_of(name).values()
        ready = [place for place in places if place.instance.state is State.READY and place.process is not None]
        if ready:
            place = min(ready, key=lambda each: each.process.busy if each.process else 0)
            assert place.process is not None
            place.process.busy += 1
            place.used_ns = self.now_ns
        elif not any(place.wanted.wanted for place in places):
            self.load(name)

    def end_request(self, key: Key) -> None:
        process = self._at(key).process
        if process is not None and process.busy:
            process.busy -= 1

    def become_ready(self, key: Key) -> None:
        place = self._at(key)
        if place.process is not None and place.process.loading and not place.process.hung:
            place.process.loading = False
            place.ready_ns = place.used_ns = self.now_ns
            self._see(place, HealthAnswered(place.instance.generation, slots=4, context_tokens=512))
            self._measured.add(place.instance.model)
            self.ledger.promise(place.key, self._estimate(place.instance.model))

    def crash(self, key: Key) -> None:
        if self._at(key).process is not None:
            self._end(self._at(key))

    def hang(self, key: Key) -> None:
        process = self._at(key).process
        if process is not None:
            process.hung = process.deaf = True

    def restart_supervisor(self) -> None:
        """Killed: the next one adopts what runs, and wants what the one before it wanted."""
        self.ledger = Ledger(self.rules)
        for key, place in self.places.items():
            place.vitals = Vitals(watched_ns=self.now_ns)
            place.wanted = wanted_after_restart(place.instance, None, None)
            if place.process is not None:
                self.ledger.promise(key, self._estimate(key[0]))
            elif place.instance.state in ALIVE:
                self._see(place, ProcessExited(generation=place.instance.generation, lost=True))

    def pass_time(self, seconds: float) -> None:
        """Step by step, so that nothing that is due waits for the end."""
        until_ns = self.now_ns + int(seconds * SECOND)
        while self.now_ns < until_ns:
            self.now_ns = min(until_ns, self.now_ns + _STEP_S * SECOND)
            for place in self.places.values():
                if place.process is not None and place.process.hung and not place.process.loading:
                    self._see(place, HealthMissed(place.instance.generation))
                if place.process is not None and place.process.hung and place.process.loading:
                    self._see(place, LoadStood(place.instance.generation, place.vitals.still_s + _STEP_S))
            self.settle()

    def change_mind(self, name: str) -> None:
        """It is to be loaded, and when the memory has just been granted it is not to be."""
        self.load(name)
        for place in self._places_of(name).values():
            self._act(place)
        self._book()
        self.unload(name)

    def serve_all(self, *, endless: bool) -> list[Key]:
        """Go on until everything that somebody wants has been ready once, or was given up; what was neither.

        Whatever loads becomes ready, and whatever hangs goes on hanging. `endless`: all that is wanted is asked for all
        the time, and each answer takes a while.
        """
        wanted = {key for key, place in self.places.items() if place.wanted.wanted}
        missing = set(wanted)
        for _ in range(_PATIENCE_S // _STEP_S):
            for key, place in self.places.items():
                self.become_ready(key)
                if place.instance.state in (State.READY, State.FAILED):
                    missing.discard(key)
                self._keep_busy(place) if endless else self._idle(place)
                if endless and key in wanted and place.instance.state is State.STOPPED:
                    self.load(key[0])
            if not missing:
                break
            self.pass_time(_STEP_S)
        return sorted(missing)

    def _at(self, key: Key) -> Place:
        """The instance of this number, or the first where the model has no such."""
        return self.places.get(key) or self.places[key[0], 0]

    def _places_of(self, name: str) -> dict[Key, Place]:
        return {key: place for key, place in self.places.items() if key[0] == name}

    def _keep_busy(self, place: Place) -> None:
        draining_s = (self.now_ns - place.instance.since_ns) / SECOND
        if place.process is not None and not place.process.hung:
            draining = place.instance.state is State.DRAINING
            place.process.busy = int(draining_s < _ANSWER_S and place.process.busy > 0) if draining else 1

    def _idle(self, place: Place) -> None:
        if place.process is not None:
            place.process.busy = 0

    # What the supervisor makes of it.

    def settle(self) -> None:
        """Do all that can be done now."""
        for _ in range(100):
            acted = [self._act(place) for place in self.places.values()]
            if not (self._book() or any(acted)):
                break
        else:
            raise AssertionError("it never comes to rest")
        self.check()

    def _act(self, place: Place) -> bool:
        action = next_action(place.instance, place.vitals, place.wanted, limits=self._limits, now_ns=self.now_ns)
        match action:
            case Spawn():
                return self._spawn(place)
            case Drain(cause=cause):
                self._see(place, DrainBegan(cause))
            case Signal(cause=cause, kill=kill):
                self._signal(place, cause, kill=kill)
            case Forget(cause=cause):
                self._see(place, Forgotten(cause))
            case Wait() | None:
                return self._count_slots(place)
        return True

    def _spawn(self, place: Place) -> bool:
        key, wanted = place.key, place.wanted
        if not self.ledger.is_promised(key):
            known = key in self.ledger.waiting
            may_evict = wanted.may_evict and wanted.asked_ns > 0
            self.ledger.wish(self._wish(key, asked_ns=wanted.asked_ns or self.now_ns, may_evict=may_evict))
            return not known
        assert place.process is None, f"{key} would run twice"
        place.process = Process()
        self._see(place, Spawned(pid=1, process_started_s=0.0, host="h", port=1, path="p"))
        return True

    def _wish(self, key: Key, *, asked_ns: int, may_evict: bool) -> Wish:
        model = self.models[key[0]]
        return Wish(
            key=key,
            estimate=self._estimate(key[0]),
            asked_ns=asked_ns,
            priority=model.priority,
            group=model.group,
            may_evict=may_evict,
        )

    def _signal(self, place: Place, cause: str, *, kill: bool) -> None:
        process = place.process
        assert process is not None
        if cause.startswith(EVICTED):
            assert not process.busy or process.hung, f"{place.key} was generating when it was ended"
        self._see(place, Signalled(cause, kill))
        if kill or not process.deaf:
            self._end(place)

    def _count_slots(self, place: Place) -> bool:
        process = place.process
        if place.instance.state is not State.DRAINING or process is None or process.hung:
            return False
        news = process.busy != place.vitals.busy_slots
        self._see(place, SlotsCounted(place.instance.generation, process.busy))
        return news

    def _end(self, place: Place) -> None:
        place.process = None
        self._see(place, ProcessExited(generation=place.instance.generation, exit_code=1))

    def _book(self) -> bool:
        """Whether anything was decided that changes anything."""
        for key, place in self.places.items():
            if not may_have_memory(place.instance, place.wanted):
                self.ledger.release(key, now_ns=self.now_ns)
        wishes = dict(self.ledger.waiting)
        decisions = self.ledger.decide(self._standings(), self.memory, now_ns=self.now_ns)
        acted = False
        for key, decision in decisions.items():
            place = self.places[key]
            match decision:
                case Evict(victims=victims):
                    for victim in victims:
                        self._evict(victim, wishes[key])
                case Refuse(why=why):
                    self._see(place, MemoryRefused(why))
                case Await(why=why):
                    self._see(place, MemoryAwaited(why))
                    continue
            acted = True
        return acted

    def _evict(self, key: Key, wish: Wish) -> None:
        place = self.places[key]
        overdue = self.now_ns - wish.asked_ns >= self.rules.patience_s * SECOND
        assert place.instance.state is State.READY, f"{key} is {place.instance.state}"
        assert not self._is_pinned(key), f"{key} is pinned"
        assert key[0] != wish.model, f"{key} makes room for {wish.key}"
        assert wish.may_evict, f"{key} makes room for {wish.key}, which nobody has asked for"
        assert place.process is not None
        assert not place.process.busy or overdue, f"{key} was at work"
        assert self.now_ns - place.ready_ns >= self.rules.min_residence_s * SECOND, f"{key} has just come"
        place.wanted = Wanted(wanted=False, cause=f"{EVICTED}{wish.model}", asked_ns=self.now_ns)

    def _standings(self) -> dict[Key, Standing]:
        return {
            key: self._standing(place)
            for key, place in self.places.items()
            if place.process is not None or self.ledger.is_promised(key)
        }

    def _is_pinned(self, key: Key) -> bool:
        return self.models[key[0]].pinned and key[1] < self.models[key[0]].replicas

    def _standing(self, place: Place) -> Standing:
        model, process = self.models[place.instance.model], place.process
        leaving = is_leaving(place.instance, place.wanted)
        return Standing(
            ready=place.instance.state is State.READY and not leaving,
            leaving=leaving,
            busy=process is not None and process.busy > 0,
            uses={RAM: model.uses} if process is not None and not process.loading else {},
            pinned=self._is_pinned(place.key),
            spare=place.instance.index >= model.replicas,
            priority=model.priority,
            group=model.group,
            ready_ns=place.ready_ns,
            used_ns=place.used_ns,
        )

    def _see(self, place: Place, seen: Observation) -> None:
        events = observe(place.instance, place.vitals, seen, limits=self._limits, now_ns=self.now_ns)
        for event in events:
            before = place.instance.state
            place.instance = evolve(place.instance, event)
            if place.instance.state is not before:
                self.left.add(before)
                self.entered.add(place.instance.state)
            if ends_promise(event):
                self.ledger.release(place.key, now_ns=self.now_ns)
        place.vitals = notice(place.instance, place.vitals, seen)

    def _estimate(self, name: str) -> Estimate:
        model = self.models[name]
        return Estimate(parts=(Part("model", {RAM: model.uses if name in self._measured else model.needs}),))

    # What must hold.

    def check(self) -> None:
        """Whatever has happened."""
        held = [resident.holds for resident in self.ledger.residents(self._standings())]
        assert not lacking(add(*held), self.memory), f"{add(*held)} of {self.memory}"
        for key, place in self.places.items():
            assert (place.process is not None) == (place.instance.state in ALIVE), f"{key}: {place.instance.state}"
            assert not self.ledger.is_promised(key) or may_have_memory(place.instance, place.wanted)
        present = {key for key, place in self.places.items() if place.process is not None and not self._is_pinned(key)}
        for key in present:
            mine = self.models[key[0]].group
            group = self.rules.groups.get(mine, Group())
            others = {other for other in present if other[0] != key[0]}
            together = {other for other in others if self.models[other[0]].group == mine}
            assert not (group.swap and together), f"{key} beside {together}"
            assert not group.exclusive or others == together, f"{key} beside {others}"

"""Commands about instances: load, unload, take a load back, and who answers here at all."""

import time
from collections.abc import Callable, Mapping, Sequence

import msgspec

from llamaherd_shared.commands import (
    Accepted,
    CancelLoad,
    GrowModel,
    LoadModel,
    ModelReset,
    Offer,
    OfferLoad,
    ResetModel,
    UnloadModel,
)
from llamaherd_shared.events.model import ModelFound
from llamaherd_supervisor import reconcile
from llamaherd_supervisor.eviction import Key
from llamaherd_supervisor.handlers import Owner
from llamaherd_supervisor.lifecycle import Instance, State, Wanted, has_crashes_to_forget
from llamaherd_supervisor.observations import Reset
from llamaherd_supervisor.reconcile import Load
from llamaherd_supervisor.workplace import Workplace


class Whois(msgspec.Struct, frozen=True):
    """To a node's supervisor (`cmd.supervisor.<node>.whois`), from one that is about to take its name."""


class Here(msgspec.Struct, frozen=True):
    pid: int
    data_dir: str


class Commands:
    """Answers at once: accepted, or refused and why.

    A model's instances are loaded, unloaded and reset together; an answer is about the first of them.
    """

    def __init__(
        self,
        at: Workplace,
        owners: Mapping[Key, Owner],
        owner_of: Callable[[str, int], Owner],
        *,
        drained: Callable[[], bool],
    ) -> None:
        """`owners`: of all instances there have been; `owner_of` makes one where there is none; `drained`: whether the
        node takes no loads."""
        self._at, self._owners, self._owner_of, self._drained = at, owners, owner_of, drained
        self._wanted_by: dict[str, set[str]] = {}
        """Model -> who asked for its load (`LoadModel.by`) and has not taken that back."""

    def decide(self, command: LoadModel) -> Load:
        """Raises why it is refused."""
        return reconcile.decide_load(
            command,
            node=self._at.node,
            models=self._at.models,
            spec=self._at.offers.spec(command.model),
            llama_server=self._at.llama_server,
            labels=self._at.settings.labels,
            stopping=self._at.service.stopping.is_set(),
            drained=self._drained(),
            now_ns=time.time_ns(),
        )

    async def load(self, command: LoadModel) -> Accepted:
        load = self.decide(command)
        await self._check_memory(command.model, load)
        self._wanted_by.setdefault(command.model, set()).add(command.by)
        accepted = await self._accept(self._owner_of(command.model, 0), load)
        self.start(command.model, load, but=0)
        return accepted

    def start(self, model: str, load: Load, *, but: int | None = None) -> None:
        """Load all instances that there are to be; `but` has been told already."""
        least = range(self._at.offers.spec(model).replicas)
        more = [owner.instance.index for owner in self.owners_of(model) if owner.is_wanted]
        for index in sorted({*least, *more} - {but}):
            self._owner_of(model, index).ask(load)

    async def grow(self, command: GrowModel) -> Accepted:
        """One more instance, where memory is free. Raises `Conflict`, `NoMemory`, and what refuses a load."""
        owner, load = self._another(command.model, beside=command.beside)
        plan = self._at.plan(owner.instance, load.options)
        if not self._at.memory.is_promised(owner.key):
            await self._at.memory.check(owner.key, plan, may_evict=False)
        return await self._accept(owner, lambda: self._another(command.model, beside=command.beside)[1])

    def _another(self, model: str, *, beside: int | None = None) -> tuple[Owner, Load]:
        load = self.decide(LoadModel(model=model))
        spec = self._at.offers.spec(model)
        running = {
            each.instance.index: each for each in self.owners_of(model) if each.is_wanted and not each.has_failed
        }
        index = reconcile.next_replica(model, running, spec, node=self._at.node, beside=beside)
        options = next((each.asked_options for each in running.values()), load.options)
        return self._owner_of(model, index), msgspec.structs.replace(load, options=options, may_evict=False)

    def settle(self) -> None:
        """What is said about the number of instances has changed: start what is missing, unload what is too much."""
        for model in {model for model, _ in self._owners}:
            spec = self._at.offers.spec(model)
            wanted = [owner for owner in self.owners_of(model) if owner.is_wanted]
            for owner in wanted:
                if owner.instance.index >= spec.most_replicas:
                    owner.ask(Wanted(wanted=False, cause="reload", asked_ns=time.time_ns()))
            if not wanted or self._drained() or not isinstance(self._at.models.get(model), ModelFound):
                continue
            load = Load(options=wanted[0].asked_options, asked_ns=time.time_ns())
            for index in range(spec.replicas):
                if not any(owner.instance.index == index for owner in wanted):
                    self._owner_of(model, index).ask(load)

    async def offer(self, command: OfferLoad) -> Offer:
        """What the load would be like. Raises why it would be refused."""
        if command.another:
            owner, load = self._another(command.model)
            plan = self._at.plan(owner.instance, load.options)
            return await self._at.memory.offer(owner.key, plan, load_s=_last_load_s(owner.instance), may_evict=False)
        load = self.decide(LoadModel(model=command.model, options=command.options, for_request=command.for_request))
        known = self._owners.get((command.model, 0))
        instance = known.instance if known is not None else Instance(node=self._at.node, model=command.model)
        options = known.wanted_after(load).options if known is not None else load.options
        plan = self._at.plan(instance, options)
        return await self._at.memory.offer((command.model, 0), plan, load_s=_last_load_s(instance))

    async def cancel_load(self, command: CancelLoad) -> Accepted:
        """Ends a load that nobody wants any more; else changes nothing."""
        wanted_by = self._wanted_by.get(command.model, set())
        wanted_by.discard(command.by)
        first, *others = self._all_of(command.model)
        coming = (State.WAITING, State.LOADING, State.BACKOFF)
        if wanted_by or first.instance.state not in coming or any(owner.is_ready for owner in others):
            sequence = await self._at.journal.sequence(first.subject)
            state = first.instance.state.value
            return Accepted(node=self._at.node, model=command.model, state=state, sequence=sequence)
        return await self._accept_all(
            [first, *others], Wanted(wanted=False, cause="cancelled", asked_ns=time.time_ns())
        )

    async def _check_memory(self, model: str, load: Load) -> None:
        """Raises `NoMemory` before anything is stopped for a load that could never be."""
        owner = self._owner_of(model, 0)
        wanted = owner.wanted_after(load)
        replaced = wanted.replaces == owner.instance.generation > 0
        if replaced or not self._at.memory.is_promised(owner.key):
            await self._at.memory.check(owner.key, self._at.plan(owner.instance, wanted.options))

    async def unload(self, command: UnloadModel) -> Accepted:
        wanted = reconcile.decide_unload(
            command.model,
            node=self._at.node,
            models=self._at.models,
            known=(command.model, 0) in self._owners,
            now_ns=time.time_ns(),
        )
        self._wanted_by.pop(command.model, None)
        return await self._accept_all(self._all_of(command.model), wanted)

    async def reset(self, command: ResetModel) -> ModelReset:
        model = command.model
        known = (model, 0) in self._owners
        reconcile.refuse_unknown(model, node=self._at.node, models=self._at.models, known=known)
        owners = self._all_of(model)
        sequence = await self._at.journal.sequence(owners[0].subject)
        forgetful = [owner for owner in owners if has_crashes_to_forget(owner.instance)]
        state = (forgetful or owners)[0].instance.state.value
        for owner in forgetful:
            owner.tell(Reset())
        return ModelReset(
            node=self._at.node,
            model=model,
            state=state,
            forgotten=bool(forgetful),
            starts=any(owner.is_wanted for owner in forgetful),
            sequence=sequence,
        )

    def owners_of(self, model: str) -> list[Owner]:
        """By index; none of a model that was never loaded."""
        return [owner for (name, _), owner in sorted(self._owners.items()) if name == model]

    def _all_of(self, model: str) -> list[Owner]:
        """The same, with the first instance in any case."""
        return [self._owner_of(model, 0), *(owner for owner in self.owners_of(model) if owner.instance.index)]

    async def _accept_all(self, owners: Sequence[Owner], wanted: Wanted) -> Accepted:
        accepted = await self._accept(owners[0], wanted)
        for owner in owners[1:]:
            owner.ask(wanted)
        return accepted

    async def _accept(self, owner: Owner, asked: Wanted | Load | Callable[[], Load]) -> Accepted:
        """`asked` may be decided in the end, when nobody can ask for something else in between; that may raise."""
        # Before the owner hears of it: whoever follows from here sees all that the command led to, and nothing older.
        sequence = await self._at.journal.sequence(owner.subject)
        wanted = asked() if callable(asked) else asked
        state = owner.instance.state.value
        replaces = owner.replaced_by(wanted) if isinstance(wanted, Load) else 0
        owner.ask(wanted)
        return Accepted(
            node=self._at.node,
            model=owner.instance.model,
            index=owner.instance.index,
            state=state,
            sequence=sequence,
            replaces=replaces,
        )


def _last_load_s(instance: Instance) -> float | None:
    return instance.last_marks[-1][1] if instance.last_marks else None

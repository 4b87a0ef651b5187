"""Commands about instances: load, unload, take a load back, and who answers here at all."""

import time
from collections.abc import Callable

import msgspec

from llamaherd_shared.commands import (
    Accepted,
    CancelLoad,
    LoadModel,
    ModelReset,
    Offer,
    OfferLoad,
    ResetModel,
    UnloadModel,
)
from llamaherd_supervisor import reconcile
from llamaherd_supervisor.handlers import Owner, Workplace
from llamaherd_supervisor.lifecycle import Instance, Reset, State, Wanted, has_crashes_to_forget
from llamaherd_supervisor.reconcile import Load


class Whois(msgspec.Struct, frozen=True):
    """To a node's supervisor (`cmd.supervisor.<node>.whois`), from one that is about to take its name."""


class Here(msgspec.Struct, frozen=True):
    pid: int
    data_dir: str


class Commands:
    """Answers `load` and `unload` at once: accepted, or refused and why."""

    def __init__(self, at: Workplace, owner_of: Callable[[str], Owner], is_known: Callable[[str], bool]) -> None:
        self._at, self._owner_of, self._is_known = at, owner_of, is_known
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
            now_ns=time.time_ns(),
        )

    async def load(self, command: LoadModel) -> Accepted:
        load = self.decide(command)
        await self._check_memory(command.model, load)
        self._wanted_by.setdefault(command.model, set()).add(command.by)
        return await self._accept(command.model, load)

    async def offer(self, command: OfferLoad) -> Offer:
        """What the load would be like. Raises why it would be refused."""
        load = self.decide(LoadModel(model=command.model, options=command.options, for_request=command.for_request))
        known = self._is_known(command.model)
        owner = self._owner_of(command.model) if known else None
        instance = owner.instance if owner is not None else Instance(node=self._at.node, model=command.model)
        options = owner.wanted_after(load).options if owner is not None else load.options
        plan = self._at.plan(instance, options)
        load_s = instance.last_marks[-1][1] if instance.last_marks else None
        return await self._at.memory.offer((command.model, 0), plan, load_s=load_s)

    async def cancel_load(self, command: CancelLoad) -> Accepted:
        """Ends a load that nobody wants any more; else changes nothing."""
        wanted_by = self._wanted_by.get(command.model, set())
        wanted_by.discard(command.by)
        owner = self._owner_of(command.model)
        state = owner.instance.state
        if not wanted_by and state in (State.WAITING, State.LOADING, State.BACKOFF):
            wanted = Wanted(wanted=False, cause="cancelled", asked_ns=time.time_ns())
            return await self._accept(command.model, wanted)
        sequence = await self._at.journal.sequence(owner.subject)
        return Accepted(node=self._at.node, model=command.model, state=state.value, sequence=sequence)

    async def _check_memory(self, model: str, load: Load) -> None:
        """Raises `NoMemory` before anything is stopped for a load that could never be."""
        owner = self._owner_of(model)
        wanted = owner.wanted_after(load)
        replaced = wanted.replaces == owner.instance.generation > 0
        if replaced or not self._at.memory.is_promised(owner.key):
            await self._at.memory.check(owner.key, self._at.plan(owner.instance, wanted.options))

    async def unload(self, command: UnloadModel) -> Accepted:
        known = self._is_known(command.model)
        wanted = reconcile.decide_unload(
            command.model, node=self._at.node, models=self._at.models, known=known, now_ns=time.time_ns()
        )
        self._wanted_by.pop(command.model, None)
        return await self._accept(command.model, wanted)

    async def reset(self, command: ResetModel) -> ModelReset:
        model = command.model
        reconcile.refuse_unknown(model, node=self._at.node, models=self._at.models, known=self._is_known(model))
        owner = self._owner_of(model)
        sequence = await self._at.journal.sequence(owner.subject)
        forgotten = has_crashes_to_forget(owner.instance)
        state = owner.instance.state.value
        owner.tell(Reset())
        return ModelReset(
            node=self._at.node,
            model=model,
            state=state,
            forgotten=forgotten,
            starts=forgotten and owner.is_wanted,
            sequence=sequence,
        )

    async def _accept(self, model: str, wanted: Wanted | Load) -> Accepted:
        owner = self._owner_of(model)
        # Before the owner hears of it: whoever follows from here sees all that the command led to, and nothing older.
        sequence = await self._at.journal.sequence(owner.subject)
        state = owner.instance.state.value
        replaces = owner.replaced_by(wanted) if isinstance(wanted, Load) else 0
        owner.ask(wanted)
        return Accepted(node=self._at.node, model=model, state=state, sequence=sequence, replaces=replaces)

"""What the gateway asks the herd to do for its clients: describe, pull and delete models, give them other names."""

import time
from collections.abc import AsyncGenerator, Callable, Collection
from typing import Any, Final, TypeVar

import msgspec

from llamaherd_gateway.dialects.dialect import Card, Description, Herd, Loaded
from llamaherd_gateway.problems import BadRequest, UnknownModel
from llamaherd_gateway.projection import Alias, Instance, Model, Pull
from llamaherd_gateway.routing.demands import demand
from llamaherd_gateway.routing.loading import Loader
from llamaherd_gateway.routing.names import LATEST, Names, file_name, is_pattern
from llamaherd_gateway.routing.policy import Policy
from llamaherd_gateway.routing.residency import Residency
from llamaherd_gateway.routing.table import unknown_model_message
from llamaherd_gateway.store import View
from llamaherd_shared.bus import Bus
from llamaherd_shared.commands import (
    DELETE_TIMEOUT_S,
    LISTING_TIMEOUT_S,
    DeleteModel,
    DescribeModel,
    ModelDeleted,
    ModelDescription,
    PullAccepted,
    PullModel,
)
from llamaherd_shared.errors import Conflict, Rejected, Unavailable
from llamaherd_shared.events.alias import AliasEvent, AliasRemoved, AliasSet
from llamaherd_shared.model_options import LoadOptions
from llamaherd_shared.service import new_id

A = TypeVar("A", bound=msgspec.Struct)

FOLLOW_S: Final = 10.0
"""How long a change that was stored may take to be seen here."""
SILENT_S: Final = 20.0
"""A pull of which nothing is heard for so long: is its supervisor still there?"""
MISSING: Final = 3
"""So often in a row it is not: time for it to be restarted, and to tell what became of the pull."""
ATTEMPTS: Final = 5
"""To store a fact while others store theirs about the same name."""


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """What a new name is to bring. What is empty is taken from the name it is made of."""

    system: str = ""
    options: dict[str, Any] = {}
    messages: list[dict[str, str]] = []

    def __bool__(self) -> bool:
        return bool(self.system or self.options or self.messages)


class Actions:
    """Use from one event loop. Every method raises `HerdError`."""

    def __init__(
        self,
        view: View,
        bus: Bus,
        loader: Loader,
        *,
        node: str,
        herd: Callable[[], Herd],
        names: Callable[[], Names],
        policy: Policy,
        residency: Residency,
    ) -> None:
        self.view, self.herd = view, herd
        self._bus, self._loader, self._names, self._node = bus, loader, names, node
        self._policy, self._residency = policy, residency

    async def settled(self) -> None:
        """Return once the gateway knows what there is: it may have just started."""
        await self._loader.wait_until_caught_up("the models")

    # Names.

    def card(self, name: str) -> Card:
        """The model that answers to this name, under the name that was asked for. Raises `UnknownModel`."""
        cards = {card.name: card for card in self.herd().cards}
        names = self._names()
        card = cards.get(names.spelling(name) or "") or cards.get(names.resolve(name) or "")
        if card is None:
            raise UnknownModel(unknown_model_message(name, self.view.table.known))
        return card

    def model_called(self, name: str) -> str | None:
        """The model that has exactly this name or alias; what a pattern or the default answers to has none."""
        spelled = self._names().spelling(name)
        model = self._names().resolve(spelled) if spelled is not None else None
        return model if model in self.view.table.known else None

    def spell(self, name: str) -> str:
        """As it is written already, if it is known; clients do not care about case."""
        return self._names().spelling(name) or name.removesuffix(LATEST)

    def alias(self, name: str) -> Alias | None:
        """The alias of exactly this name, made by a client."""
        spelled = self._names().spelling(name)
        alias = self.view.fleet.aliases.get(spelled) if spelled is not None else None
        return alias if alias is not None and alias.model == self._names().resolve(name) else None

    def free_file_name(self, name: str) -> str:
        """What the file of a model is called that will have this name, and takes the place of what had it.

        Never a file that has other names as well. Raises `Conflict` when it would have to be.
        """
        name = self.spell(name)
        wanted, number = file_name(name), 1
        while True:
            candidate = wanted if number == 1 else f"{wanted}-{number}"
            others = [other for other in self._aliases_of(candidate) if other.alias != name]
            mine = candidate == name or any(alias.alias == name for alias in self._aliases_of(candidate, came=True))
            if candidate == name and others:
                raise _has_other_names(name, others)
            if candidate not in self.view.table.known or (mine and not others):
                return candidate
            number += 1

    async def name(self, alias: str, source: str, wishes: Wishes, *, came_with_model: bool = False) -> None:
        """Another name for the model of `source`, with what its alias brings, and more. Returns once it is known."""
        model, base = self.model_called(source), self.alias(source)
        if model is None:
            raise UnknownModel(unknown_model_message(source, self.view.table.known))
        wishes = Wishes(
            system=wishes.system or (base.system if base is not None else ""),
            options={**(base.options if base is not None else {}), **wishes.options},
            messages=wishes.messages or (base.messages if base is not None else []),
        )
        await self.set_alias(alias, model, wishes, came_with_model=came_with_model)

    async def set_alias(self, alias: str, model: str, wishes: Wishes, *, came_with_model: bool = False) -> None:
        """From now on the alias means this model, which may be on its way still."""
        alias = self.check_alias(alias, model)
        sequence = await self._store(
            AliasSet(
                alias=alias,
                model=model,
                at_ns=time.time_ns(),
                system=wishes.system,
                options=wishes.options,
                messages=wishes.messages,
                came_with_model=came_with_model,
            ),
        )

        def is_seen() -> bool:
            seen = self.view.fleet.aliases.get(alias)
            return seen is not None and seen.sequence >= sequence

        await self._until(is_seen, f"the name {alias!r} is stored and not seen yet")

    def check_alias(self, alias: str, model: str | None) -> str:
        """The alias as it is spelled, if it may mean this model; `None`: one that is not there yet."""
        alias = self.spell(alias)
        if is_pattern(alias):
            raise BadRequest(f"{alias!r} cannot be a name: `*`, `?` and `[` stand for many", code="invalid_model")
        if alias in self._policy.aliases:
            raise self._is_configured(alias)
        if alias in self.view.table.known and alias != model:
            text = f"{alias!r} is the name of a model's file and cannot mean another model: delete that one first"
            raise BadRequest(text, code="name_taken")
        return alias

    async def remove_alias(self, alias: str) -> None:
        """It means nothing any more. Returns once that is known."""
        await self._store(AliasRemoved(alias=alias, at_ns=time.time_ns()))
        await self._until(lambda: alias not in self.view.fleet.aliases, f"the name {alias!r} is still there")

    async def delete(self, name: str) -> None:
        """Take this name away, and with a model's own, or the last one it came by, the files on every node."""
        spelled, model = self._names().spelling(name), self.model_called(name)
        if spelled is None or model is None:
            raise UnknownModel(unknown_model_message(name, self.view.table.known))
        if spelled != model and spelled in self._policy.aliases:
            raise self._is_configured(spelled)
        alias = self.alias(spelled)
        others = [other for other in self._aliases_of(model) if other.alias != spelled]
        if spelled == model:
            if lost := [other for other in others if not other.came_with_model]:
                raise _has_other_names(model, lost)
            await self._delete_files(model)
        elif alias is not None and alias.came_with_model and not others:
            await self._delete_files(model)
        else:
            others = []
        for gone in (alias, *others):
            if gone is not None:
                await self.remove_alias(gone.alias)

    def _aliases_of(self, model: str, *, came: bool = False) -> list[Alias]:
        """Made by clients; `came`: only those that the model's file came by."""
        aliases = (alias for alias in self.view.fleet.aliases.values() if alias.model == model)
        return sorted((alias for alias in aliases if alias.came_with_model or not came), key=lambda each: each.alias)

    def _is_configured(self, alias: str) -> BadRequest:
        text = f"{alias!r} is an alias from llamaherd.yaml (`gateway.aliases` or `models`): change it there"
        return BadRequest(text, code="configured_alias")

    async def _store(self, fact: AliasEvent) -> int:
        subject = self._bus.subjects.alias(fact.alias)
        for attempt in range(ATTEMPTS):
            known = await self._bus.last_sequence(subject)
            try:
                return await self._bus.append(subject, fact, msg_id=new_id(), expected=known)
            except Conflict:
                if attempt == ATTEMPTS - 1:
                    raise
        raise AssertionError("unreachable")

    # Files.

    async def describe(self, card: Card, *, verbose: bool = False) -> Description:
        """What the model's file says; nothing when it is gone and an instance serves on."""
        if not any(file.model == card.model for file in self.view.fleet.models.values()):
            return Description()
        command = DescribeModel(model=card.model, verbose=verbose)
        said = await self._ask(self._nodes_with(card.model)[0], "describe", command, ModelDescription)
        return Description(
            metadata=said.metadata,
            chat_template=said.chat_template,
            tensors=[(tensor.name, tensor.type, tensor.shape) for tensor in said.tensors],
        )

    async def start_pull(self, command: PullModel, *, node: str | None = None) -> PullAccepted:
        """Begin to get a model; without a node, on this gateway's own if it has a supervisor, else on the first."""
        node = node or self.nodes_for("")[0]
        return await self._ask(node, "pull", command, PullAccepted, timeout_s=LISTING_TIMEOUT_S)

    async def follow_pull(self, accepted: PullAccepted) -> AsyncGenerator[Pull, None]:
        """The pull after every change, the last time when it has finished. It goes on when nobody follows.

        Raises why it has failed, or `Unavailable` when its supervisor is gone.
        """
        seen: Pull | None = None
        heard_at, missing = time.monotonic(), 0
        while seen is None or seen.state == "running":
            pull = self.view.fleet.pulls.get(accepted.pull)
            if pull is not None and pull != seen:
                seen, heard_at, missing = pull, time.monotonic(), 0
                if pull.state == "failed":
                    raise _failure(pull)
                yield pull
            elif time.monotonic() - heard_at < SILENT_S:
                await self.view.changed(SILENT_S / 4)
            else:
                heard_at = time.monotonic()
                missing = 0 if await self._is_there(accepted) else missing + 1
                if missing == MISSING:
                    text = f"the supervisor of {accepted.node} is gone, and the pull of {accepted.model!r} with it"
                    raise Unavailable(text, retry_after_s=10)

    async def until_known(self, model: str) -> None:
        """Return once a model whose file has just come can be asked for."""
        await self._until(lambda: model in self.view.table.known, f"the model {model!r} has come, but is not offered")

    def model_of_content(self, sha256: str) -> str | None:
        """A model whose file was fetched or sent with this content, and has not changed since."""
        seen: set[str] = set()
        for pull in sorted(self.view.fleet.pulls.values(), key=lambda each: -each.at_ns):
            if pull.state != "finished" or pull.model in seen:
                continue
            seen.add(pull.model)
            file = self.view.fleet.models.get((pull.node, pull.model))
            if pull.sha256 == sha256 and file is not None and self._is_as_pulled(file, pull):
                return pull.model
        return None

    def _is_as_pulled(self, file: Model, pull: Pull) -> bool:
        sizes = (file.size_bytes, file.size_bytes + file.projector_bytes)
        same_size = pull.total_bytes in sizes and file.rejected is None
        return same_size and all(
            other.size_bytes == file.size_bytes
            for other in self.view.fleet.models.values()
            if other.model == file.model and self._runs(other.node)
        )

    def nodes_for(self, model: str) -> list[str]:
        """Where a file of this name belongs: where one is already, else on one node, our own if it can be."""
        if nodes := self._nodes_with_file(model):
            return nodes
        running = sorted(node for node in self.view.fleet.nodes if self._runs(node))
        if not running:
            raise Unavailable("no supervisor runs that could take a model", retry_after_s=5)
        return [self._node if self._node in running else running[0]]

    async def _delete_files(self, model: str) -> None:
        for node in self._nodes_with(model):
            command = DeleteModel(model=model, unload=True)
            await self._ask(node, "delete", command, ModelDeleted, timeout_s=DELETE_TIMEOUT_S)
        await self._until(lambda: model not in self.view.table.known, f"the model {model!r} is still there")

    async def _is_there(self, accepted: PullAccepted) -> bool:
        try:
            await self._ask(accepted.node, "describe", DescribeModel(model=accepted.model), ModelDescription)
        except Unavailable:
            return False
        except Rejected:
            pass  # it has no such model yet, and says so
        return True

    def _nodes_with_file(self, model: str) -> list[str]:
        return sorted(node for node, name in self.view.fleet.models if name == model and self._runs(node))

    def _nodes_with(self, model: str) -> list[str]:
        nodes = self._nodes_with_file(model)
        if not nodes:
            raise Unavailable(f"no supervisor of a node that has the model {model!r} runs now", retry_after_s=5)
        return nodes

    def _runs(self, node: str) -> bool:
        known = self.view.fleet.nodes.get(node)
        return known is not None and known.joined

    # Memory.

    async def load(self, model: str, options: LoadOptions | None = None) -> Loaded:
        """Load it and keep it, whatever was said before; anew, if it is loaded with other options."""
        training = self.view.table.training.get(model, 0)
        wanted = demand(options, None, self._policy.of(model), training_tokens=training)
        instance: Instance = await self._loader.ready(model, wanted, exactly=True)
        self._residency.say(model, -1, time.monotonic())
        return Loaded(
            name=instance.name,
            node=instance.node,
            state=instance.state,
            context_tokens=instance.context_tokens,
            slots=instance.slots,
            options=instance.options,
        )

    async def unload(self, model: str, *, nodes: Collection[str] | None = None) -> None:
        """Unload it, on these nodes or wherever it is loaded; requests in flight may finish."""
        await self._loader.unload(model, nodes=nodes)

    async def _ask(
        self, node: str, verb: str, command: msgspec.Struct, reply_type: type[A], *, timeout_s: float = 5.0
    ) -> A:
        subject = self._bus.subjects.command("supervisor", verb, node=node)
        return await self._bus.request(subject, command, reply_type, timeout_s=timeout_s)

    async def _until(self, holds: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + FOLLOW_S
        while not holds():
            left = deadline - time.monotonic()
            if left <= 0:
                raise Unavailable(otherwise, retry_after_s=2)
            await self.view.changed(left)


def _has_other_names(model: str, others: Collection[Alias]) -> Conflict:
    names = ", ".join(repr(other.alias) for other in others)
    return Conflict(f"the model {model!r} is also called {names}: delete that first")


def _failure(pull: Pull) -> Rejected | Unavailable:
    if pull.kind in ("rejected", "not_found"):
        return BadRequest(pull.reason)
    return Unavailable(pull.reason)

"""What the gateway asks the herd to do for its clients: describe, pull and delete models, give them other names."""

import time
from collections.abc import AsyncIterator, Callable
from typing import Final, TypeVar

import msgspec

from llamaherd_gateway.dialects.dialect import Card, Description, Herd
from llamaherd_gateway.problems import BadRequest, UnknownModel
from llamaherd_gateway.projection import Alias, Pull
from llamaherd_gateway.routing.loading import Loader
from llamaherd_gateway.routing.names import Names
from llamaherd_gateway.routing.presets import parameters_of
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
from llamaherd_shared.errors import Unavailable
from llamaherd_shared.events.alias import AliasEvent, AliasRemoved, AliasSet
from llamaherd_shared.service import new_id

A = TypeVar("A", bound=msgspec.Struct)

FOLLOW_S: Final = 10.0
"""How long a change that was stored may take to be seen here."""


class Actions:
    """Use from one event loop. Every method raises `HerdError`."""

    def __init__(
        self, view: View, bus: Bus, loader: Loader, *, herd: Callable[[], Herd], names: Callable[[], Names]
    ) -> None:
        self.view, self.loader, self.herd = view, loader, herd
        self._bus, self._names = bus, names

    def card(self, name: str) -> Card:
        """The model of this name, under the name it was asked for. Raises `UnknownModel`."""
        cards = {card.name: card for card in self.herd().cards}
        model = self._names().resolve(name)
        card = cards.get(name) or (cards.get(model) if model is not None else None)
        if card is None:
            raise UnknownModel(unknown_model_message(name, self.view.table.known))
        return card

    def alias(self, name: str) -> Alias | None:
        """The alias of exactly this name, made by a client."""
        return self.view.fleet.aliases.get(name) or self.view.fleet.aliases.get(name.removesuffix(":latest"))

    async def describe(self, card: Card, *, verbose: bool = False) -> Description:
        """What the model's file says."""
        command = DescribeModel(model=card.model, verbose=verbose)
        said = await self._ask(self._node_with(card.model), "describe", command, ModelDescription)
        return Description(
            metadata=said.metadata,
            chat_template=said.chat_template,
            tensors=[(tensor.name, tensor.type, tensor.shape) for tensor in said.tensors],
        )

    async def start_pull(self, command: PullModel) -> PullAccepted:
        """Begin to get a model, on the node that is best for it."""
        return await self._ask(self._any_node(), "pull", command, PullAccepted, timeout_s=LISTING_TIMEOUT_S)

    async def follow_pull(self, accepted: PullAccepted) -> AsyncIterator[Pull]:
        """The pull after every change, the last time when it has ended. It goes on when nobody follows."""
        seen: Pull | None = None
        while seen is None or seen.state == "running":
            pull = self.view.fleet.pulls.get(accepted.pull)
            if pull is not None and pull != seen:
                seen = pull
                yield pull
            else:
                await self.view.changed(FOLLOW_S)

    async def until_known(self, model: str) -> None:
        """Return once a model whose file has just come can be asked for."""
        await self._until(lambda: model in self.view.table.known, f"the model {model!r} has come, but is not offered")

    async def delete(self, name: str) -> None:
        """Take the alias of this name away, else the model's files on every node."""
        if (alias := self.alias(name)) is not None:
            await self._store(AliasRemoved(alias=alias.alias, at_ns=time.time_ns()), alias.alias)
            await self._until(lambda: alias.alias not in self.view.fleet.aliases, f"the alias {name!r} is still there")
            return
        card = self.card(name)
        if card.name != card.model:
            text = f"{name!r} is an alias from the gateway's settings (`gateway.aliases`): take it away there"
            raise BadRequest(text, code="configured_alias")
        for node in self._nodes_with(card.model):
            command = DeleteModel(model=card.model, unload=True)
            await self._ask(node, "delete", command, ModelDeleted, timeout_s=DELETE_TIMEOUT_S)
        await self._until(lambda: card.model not in self.view.table.known, f"the model {name!r} is still there")

    async def set_alias(
        self, alias: str, source: str, *, system: str = "", options: dict[str, object] | None = None
    ) -> None:
        """Another name for the model of `source`, with what its alias brings, and more."""
        alias = alias.removesuffix(":latest")
        card, base = self.card(source), self.alias(source)
        if alias in self.view.table.known:
            raise BadRequest(f"{alias!r} is a model's own name and cannot mean another one", code="name_taken")
        options = {**(base.options if base is not None else {}), **(options or {})}
        fact = AliasSet(
            alias=alias,
            model=card.model,
            at_ns=time.time_ns(),
            system=system or (base.system if base is not None else ""),
            options=options,
            parameters=parameters_of(options),
        )
        sequence = await self._store(fact, alias)
        await self._until(
            lambda: alias in self.view.fleet.aliases and self.view.fleet.aliases[alias].sequence >= sequence,
            f"the alias {alias!r} is not seen",
        )

    async def _store(self, fact: AliasEvent, alias: str) -> int:
        subject = self._bus.subjects.alias(alias)
        known = await self._bus.last_sequence(subject)
        return await self._bus.append(subject, fact, msg_id=new_id(), expected=known)

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

    def _nodes_with(self, model: str) -> list[str]:
        fleet = self.view.fleet
        return sorted(node for node, name in fleet.models if name == model and self._runs(node))

    def _node_with(self, model: str) -> str:
        nodes = self._nodes_with(model)
        if not nodes:
            raise Unavailable(f"no supervisor of a node that has the model {model!r} runs now", retry_after_s=5)
        return nodes[0]

    def _any_node(self) -> str:
        nodes = sorted(node for node in self.view.fleet.nodes if self._runs(node))
        if not nodes:
            raise Unavailable("no supervisor runs that could take a model", retry_after_s=5)
        return nodes[0]

    def _runs(self, node: str) -> bool:
        known = self.view.fleet.nodes.get(node)
        return known is not None and known.joined

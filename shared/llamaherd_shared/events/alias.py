"""Facts about another name for a model, made by a client. Written by: gateway. Read by: gateway, ui."""

from typing import Any

import msgspec


class AliasBase(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """Fields every alias event carries."""

    alias: str
    at_ns: int
    """Unix nanoseconds, from the writer's clock."""


class AliasSet(AliasBase, frozen=True, kw_only=True, tag="alias.set.v1"):
    """From now on the alias means this model; it may bring settings of its own (Ollama's `create ... from`)."""

    model: str
    """The model's own name."""
    system: str = ""
    """System message of chats that have none."""
    parameters: dict[str, Any] = {}
    """Given when a request says nothing about them, by llama-server's names."""
    options: dict[str, Any] = {}
    """The same as the client wrote them, by Ollama's names."""


class AliasRemoved(AliasBase, frozen=True, kw_only=True, tag="alias.removed.v1"):
    """The alias means nothing any more."""


AliasEvent = AliasSet | AliasRemoved

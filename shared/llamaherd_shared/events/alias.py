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
    options: dict[str, Any] = {}
    """Parameters of requests that say nothing about them, by Ollama's names."""
    messages: list[dict[str, str]] = []
    """`role` and `content` of what every chat begins with, behind the system message."""
    came_with_model: bool = False
    """The model's file was fetched or sent under this name: with the name it goes, unless it has others."""


class AliasRemoved(AliasBase, frozen=True, kw_only=True, tag="alias.removed.v1"):
    """The alias means nothing any more."""


AliasEvent = AliasSet | AliasRemoved

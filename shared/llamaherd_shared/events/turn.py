"""Answers that may be gone on from, with what was asked. Written by: gateway. Read by: gateway alone.

The only message on the bus that holds what people and models wrote (docs/adr/0014).
"""

from typing import Any

import msgspec


class TurnKept(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="turn.kept.v1", omit_defaults=True):
    """A client was given an answer that a later request may go on from. Holds what they said to each other."""

    response: str
    """The answer's id, by which clients name it."""
    at_ns: int
    """When the answer was complete, Unix nanoseconds, from the gateway's clock."""
    asked_ns: int
    """When the request had arrived."""
    model: str
    """As the client wrote it."""
    previous: str = ""
    """The answer that this turn went on from; empty: it began the conversation."""
    input: list[dict[str, Any]]
    """What was asked in this turn alone, as items of OpenAI's Responses API."""
    output: list[dict[str, Any]]
    """What was answered, as such items."""
    system: str = ""
    """System message that holds for later turns too. OpenAI's `instructions` do not: they stand in `echoed`."""
    cut: bool = False
    """Whether the answer ended at its limit of tokens."""
    usage: dict[str, Any]
    """Tokens, as OpenAI's Responses API tells them."""
    echoed: dict[str, Any] = {}
    """What a response of OpenAI's repeats of its request; empty for LM Studio's chat."""

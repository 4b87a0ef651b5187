"""A stored message as readers see it."""

from collections.abc import Mapping

import msgspec


class Recorded(msgspec.Struct, frozen=True):
    """One message of a stream."""

    stream: str
    sequence: int
    """Position in the stream, from 1."""
    at_ns: int
    """When nats-server stored it, Unix nanoseconds; 0 when a live copy does not tell."""
    subject: str
    data: bytes
    pending: int = 0
    """Messages behind this one that the reader has not received yet; 0 means caught up."""
    headers: Mapping[str, str] | None = None


def parse_ack_reply(reply: str) -> tuple[int, int, int]:
    """(stream sequence, stored at ns, pending) from a delivered message's `$JS.ACK...` reply subject.

    Nine tokens, or twelve where domain and account hash come first (NATS ADR-15).
    """
    tokens = reply.split(".")
    at = 2 if len(tokens) >= 11 else 0
    return int(tokens[5 + at]), int(tokens[7 + at]), int(tokens[8 + at])

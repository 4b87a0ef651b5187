"""What each API key has used of one gateway, for limits that gateways share. Telemetry, not facts; kept nowhere.

Written by: gateway, a few times a second while keys with limits are used. Read by: the other gateways. MessagePack
on the wire. Counts grow from the gateway's start, so a message that is lost takes nothing with it.
"""

from typing import Final

import msgspec


class KeyUsage(msgspec.Struct, frozen=True, array_like=True):
    """One key on one gateway. An array on the wire: new fields are added at the end, with a default."""

    key: str
    """Its id."""
    asked: int
    """Requests that came, refused ones included: the gateway has use for a share of the limits."""
    requests: int
    """Requests that were let in."""
    tokens: int
    """Tokens of requests that have ended."""
    recent_requests: int
    recent_tokens: int
    """The same, as far as they still count against the limits: for a gateway that hears of this one first."""
    held_tokens: int
    """What requests in flight are expected to use."""
    in_flight: int


class GatewayUsage(msgspec.Struct, frozen=True):
    """What has changed since this gateway's last message; sent without any change every 2 s, to say that it lives."""

    gateway: str
    """Names this process: a gateway that was started again is another one."""
    keys: list[KeyUsage] = []


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(GatewayUsage)


def encode_usage(usage: GatewayUsage) -> bytes:
    return _ENCODER.encode(usage)


def decode_usage(data: bytes) -> GatewayUsage:
    """Raises `msgspec.MsgspecError` for bytes that are no usage."""
    return _DECODER.decode(data)

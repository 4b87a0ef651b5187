"""What API keys and models are used for on one gateway, for limits and `keep_alive`s that gateways share.

Telemetry, not facts; kept nowhere. Written by: gateway, a few times a second while there is news. Read by: the other
gateways. MessagePack on the wire. Counts grow from the gateway's start, so a message that is lost takes nothing with
it.
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


class ModelUse(msgspec.Struct, frozen=True, array_like=True):
    """One model on one gateway, where a client said how long it stays loaded. An array on the wire, as `KeyUsage`."""

    model: str
    in_flight: int
    """Requests that use it now."""
    idle_s: float | None
    """Seconds since the last one ended; `None`: there was none."""
    keep_s: float | None
    """How long it stays after its last request, as this gateway was told; negative: for ever; `None`: not told."""
    said_ago_s: float = 0.0
    """Seconds since that was told: what was told last, anywhere, counts."""


class GatewayUsage(msgspec.Struct, frozen=True):
    """What has changed since this gateway's last message; sent without any change every 2 s, to say that it lives."""

    gateway: str
    """Names this process: a gateway that was started again is another one."""
    keys: list[KeyUsage] = []
    models: list[ModelUse] | None = None
    """All models that somebody spoke about, on any gateway; `None`: as in the message before."""


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(GatewayUsage)


def encode_usage(usage: GatewayUsage) -> bytes:
    return _ENCODER.encode(usage)


def decode_usage(data: bytes) -> GatewayUsage:
    """Raises `msgspec.MsgspecError` for bytes that are no usage."""
    return _DECODER.decode(data)

"""Samples: measurements of one source at one moment. Telemetry, not facts. MessagePack on the wire.

Written by: metrics. Read by: metrics, ui.
"""

from typing import Final

import msgspec


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """Everything one scrape of one source saw."""

    node: str
    source: str
    """`host`, `gpu/<n>`, `instance/<model>/<index>` or `service/<name>`."""
    at_ns: int
    """Unix nanoseconds."""
    values: dict[str, float]
    """By name; the unit is the name's last part: `cpu_pct` (0-100), `memory_used_bytes`, `disk_read_bytes_per_s`."""


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(Sample)


def encode_sample(sample: Sample) -> bytes:
    return _ENCODER.encode(sample)


def decode_sample(data: bytes) -> Sample:
    """Raises `msgspec.MsgspecError` for bytes that are no sample."""
    return _DECODER.decode(data)

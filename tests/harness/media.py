"""Images and sounds, made on the spot."""

import io
import math
import struct
import wave
import zlib
from base64 import b64encode
from typing import Final

_RATE: Final = 16_000


def png(red: int = 200, *, side: int = 8) -> bytes:
    """A square of one colour."""
    rows = (b"\0" + bytes((red, 40, 40)) * side) * side
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        _chunk(kind, data) for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )


def wav(seconds: float = 0.5, *, tone_hz: float = 440.0) -> bytes:
    """A tone, 16 bit, mono."""
    numbers = range(int(_RATE * seconds))
    samples = [int(8000 * math.sin(math.tau * tone_hz * number / _RATE)) for number in numbers]
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(_RATE)
        out.writeframes(struct.pack(f"<{len(samples)}h", *samples))
    return file.getvalue()


def base64(data: bytes) -> str:
    return b64encode(data).decode()


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64(data)}"


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

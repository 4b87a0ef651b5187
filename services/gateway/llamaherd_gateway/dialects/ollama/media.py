"""Images and sounds in a request: bare base64, told apart by their first bytes (reference: api-dialects, 5.3)."""

import binascii
from typing import Any, Final

from llamaherd_gateway.problems import BadRequest

_SNIFFED_CHARACTERS: Final = 16
"""Of base64: 12 bytes, as many as the longest signature here."""

_IMAGES: Final = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"BM", "image/bmp"),
    (b"\x00\x00\x01\x00", "image/x-icon"),
)
_ANY_IMAGE: Final = "image/jpeg"


def render_media(data: str) -> dict[str, Any]:
    """A part of a message's content. Raises `BadRequest` for what is no base64.

    WebP goes as it is: a llama-server that was built with FFmpeg reads it.
    """
    data = check_base64(data)
    start = binascii.a2b_base64(data[:_SNIFFED_CHARACTERS])
    if sound := _sound_format(start):
        return {"type": "input_audio", "input_audio": {"data": data, "format": sound}}
    return {"type": "image_url", "image_url": {"url": f"data:{_image_type(start)};base64,{data}"}}


def check_base64(data: str) -> str:
    """The same without line breaks."""
    if "\n" in data or "\r" in data:
        data = data.replace("\n", "").replace("\r", "")
    try:
        binascii.a2b_base64(data, strict_mode=True)
    except ValueError as error:
        raise BadRequest(f"an image is not valid base64: {error}", param="images", code="invalid_image") from error
    return data


def _sound_format(start: bytes) -> str:
    if start[:4] == b"RIFF" and start[8:12] == b"WAVE":
        return "wav"
    if start[:4] == b"fLaC":
        return "flac"
    if start[:3] == b"ID3" or (start[:1] == b"\xff" and len(start) > 1 and start[1] & 0xE0 == 0xE0):
        return "mp3"
    return ""


def _image_type(start: bytes) -> str:
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for signature, kind in _IMAGES if start.startswith(signature)), _ANY_IMAGE)

"""Images, sounds and films in messages. llama-server would fetch an address for anybody: that is refused."""

import re
from typing import Any, Final

import msgspec

from llamaherd_gateway.problems import BadRequest

_ADDRESS: Final = re.compile(r"\s*(http|file:|[a-z][a-z0-9+.-]*://)", re.IGNORECASE)
"""llama-server downloads everything that begins with `http`."""


class Part(msgspec.Struct):
    """Of a message's content: only where its bytes may be named."""

    image_url: Any = None
    input_audio: Any = None
    input_video: Any = None
    video_url: Any = None


class Message(msgspec.Struct):
    """Of a conversation: decoding the content this way costs little, and sees through every escape."""

    content: str | list[Part] | None = None


def check_media(messages: list[Message]) -> None:
    """Raises `BadRequest` when a part has an address where its bytes should be."""
    for number, message in enumerate(messages):
        content = message.content
        if content.__class__ is list:
            for part in content:
                for source in (part.image_url, part.input_audio, part.input_video, part.video_url):
                    if source is not None and _is_address(source):
                        raise BadRequest(
                            "images, sounds and films are not fetched from addresses: send the bytes as `data:...`",
                            param=f"messages[{number}].content",
                            code="invalid_image_url",
                        )


def refuse_remote_media(messages: Any) -> None:
    """`check_media` for messages that were decoded without types. Raises `BadRequest`."""
    try:
        typed = msgspec.convert(messages, list[Message])
    except msgspec.ValidationError as error:
        raise BadRequest(f"`messages` cannot be read: {error}", param="messages", code="invalid_type") from error
    check_media(typed)


def _is_address(source: Any) -> bool:
    places = (source.get("url"), source.get("data")) if isinstance(source, dict) else (source,)
    return any(isinstance(place, str) and _ADDRESS.match(place) is not None for place in places)

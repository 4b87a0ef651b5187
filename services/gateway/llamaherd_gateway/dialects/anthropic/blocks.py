"""Content blocks as clients send them, and the text and images they hold.

A block is decoded when its place in the conversation is known, so that an error can name it: `messages.2.content.0`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec

from llamaherd_gateway.problems import BadRequest

IMAGE_TYPES: Final = ("image/jpeg", "image/png", "image/gif", "image/webp")

Part = str | dict[str, Any]
"""A text, or a part of a chat message's `content` that is none."""

T = TypeVar("T")


class Base64(msgspec.Struct, tag="base64"):
    media_type: str
    data: str


class Url(msgspec.Struct, tag="url"):
    url: str


class File(msgspec.Struct, tag="file"):
    file_id: str


class PlainText(msgspec.Struct, tag="text"):
    data: str


class Nested(msgspec.Struct, tag="content"):
    content: str | list[msgspec.Raw]


class Text(msgspec.Struct, tag="text"):
    text: str


class Image(msgspec.Struct, tag="image"):
    source: Base64 | Url | File


class Document(msgspec.Struct, tag="document"):
    source: PlainText | Nested | Base64 | Url | File
    title: str | None = None
    context: str | None = None


class SearchResult(msgspec.Struct, tag="search_result"):
    source: str
    title: str
    content: list[Text]


class Thinking(msgspec.Struct, tag="thinking"):
    thinking: str


class RedactedThinking(msgspec.Struct, tag="redacted_thinking"):
    pass


class ToolUse(msgspec.Struct, tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]


class ToolResult(msgspec.Struct, tag="tool_result"):
    tool_use_id: str
    content: str | list[msgspec.Raw] | None = None
    is_error: bool | None = None


Readable = Text | Image | Document | SearchResult
"""What a user says, a tool answers and a document is made of."""
Block = Readable | Thinking | RedactedThinking | ToolUse | ToolResult


class _Kind(msgspec.Struct):
    type: str


_KIND: Final = msgspec.json.Decoder(_Kind)
_BLOCK: Final = msgspec.json.Decoder(Block)
_READABLE: Final = msgspec.json.Decoder(Readable)


def parse_blocks(content: str | list[msgspec.Raw], where: str) -> list[tuple[str, Block]]:
    """Every block with its place; a string is one block of text. Raises `BadRequest`."""
    return _parse(content, where, _BLOCK)


def parts_of(block: Readable, where: str) -> list[Part]:
    """What the model is to read. Raises `BadRequest` for what no text can be made of."""
    match block:
        case Text():
            return [block.text] if block.text else []
        case Image():
            return [_image(block.source, where)]
        case SearchResult():
            fields = {"source": block.source, "title": block.title}
            return _tagged("search_result", fields, [text.text for text in block.content])
        case Document():
            return _tagged("document", {"title": block.title, "context": block.context}, _document(block, where))


def parts_of_result(content: str | list[msgspec.Raw] | None, where: str) -> list[Part]:
    """What a tool answered. Raises `BadRequest`."""
    return [part for at, block in _parse(content or [], where, _READABLE) for part in parts_of(block, at)]


def content_of(parts: Sequence[Part], joint: str = "\n") -> str | list[dict[str, Any]]:
    """A chat message's `content`: one text wherever possible, which is what every chat template understands."""
    texts = [part for part in parts if isinstance(part, str)]
    if len(texts) == len(parts):
        return joint.join(texts)
    return [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]


def _parse(content: str | list[msgspec.Raw], where: str, decoder: "msgspec.json.Decoder[T]") -> list[tuple[str, T]]:
    if isinstance(content, str):
        return [(where, Text(content))]  # type: ignore[list-item] # every decoder here knows `Text`
    places = [f"{where}.content.{index}" for index in range(len(content))]
    return [(at, _decode(raw, at, decoder)) for at, raw in zip(places, content, strict=True)]


def _decode(raw: msgspec.Raw, where: str, decoder: "msgspec.json.Decoder[T]") -> T:
    try:
        return decoder.decode(raw)
    except RecursionError as error:
        raise BadRequest(f"{where}: nested too deeply", code="invalid_json") from error
    except ValueError as error:
        raise BadRequest(_describe(raw, where, str(error)), code="invalid_content") from error


def _describe(raw: msgspec.Raw, where: str, error: str) -> str:
    if error.startswith("Invalid value") and error.endswith("`$.type`"):
        return f"{where}: content of type `{_KIND.decode(raw).type}` cannot be served here"
    said, _, path = error.partition(" - at ")
    return f"{where}{path.strip('`').removeprefix('$')}: {said[:1].lower()}{said[1:]}"


def _image(source: Base64 | Url | File, where: str) -> dict[str, Any]:
    if not isinstance(source, Base64):
        # llama-server would fetch the URL itself: from inside the herd's own network.
        raise BadRequest(f"{where}.source: only images given as `base64` can be served, not by `{_tag(source)}`")
    if source.media_type not in IMAGE_TYPES:
        raise BadRequest(f"{where}.source.media_type: `{source.media_type}` is none of {', '.join(IMAGE_TYPES)}")
    return {"type": "image_url", "image_url": {"url": f"data:{source.media_type};base64,{source.data}"}}


def _document(block: Document, where: str) -> list[Part]:
    match block.source:
        case PlainText(data=text):
            return [text]
        case Nested(content=content):
            return parts_of_result(content, f"{where}.source")
        case Base64(media_type=media_type):
            raise BadRequest(f"{where}.source: no text can be read from `{media_type}`; send the document as text")
        case other:
            raise BadRequest(f"{where}.source: documents cannot be fetched by `{_tag(other)}`; send them as text")


def _tagged(name: str, fields: Mapping[str, str | None], parts: Sequence[Part]) -> list[Part]:
    """Parts between tags, so that the model sees where they begin and end."""
    lines = [f"<{name}>", *(f"<{key}>{value}</{key}>" for key, value in fields.items() if value)]
    return ["\n".join(lines), *parts, f"</{name}>"]


def _tag(source: msgspec.Struct) -> object:
    return source.__struct_config__.tag

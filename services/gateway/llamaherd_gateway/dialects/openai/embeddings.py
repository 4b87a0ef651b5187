"""`POST /v1/embeddings`: passed through; vectors are shortened here when the client asks for fewer dimensions."""

import math
import struct
from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from llamaherd_gateway.bodies import decode_body, model_of
from llamaherd_gateway.dialects.dialect import Asked, Call, Facts, Header, Route, Turn
from llamaherd_gateway.dialects.openai.errors import OPENAI, render_stream_error
from llamaherd_gateway.dialects.openai.fields import change_fields, is_whole_number
from llamaherd_gateway.problems import BadRequest, Problem

PATH: Final = "/v1/embeddings"


class EmbeddingsBody(msgspec.Struct):
    model: Any = None
    input: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    dimensions: Any = None
    encoding_format: Any = None


class _Vector(msgspec.Struct):
    embedding: str
    index: int


class _Answer(msgspec.Struct):
    data: list[_Vector]
    model: Any = None
    usage: Any = None


class Shape(msgspec.Struct, frozen=True):
    """Of the vectors a client asked for."""

    dimensions: int
    base64: bool


_DECODER: Final = msgspec.json.Decoder(EmbeddingsBody)
_ANSWER: Final = msgspec.json.Decoder(_Answer)
_EMPTY: Final = (b"", b"null", b'""', b"[]")


def read_embeddings(body: bytes, headers: Sequence[Header] = ()) -> Asked:
    """Raises `BadRequest`."""
    read = decode_body(_DECODER, body)
    model = model_of(read.model)
    if bytes(memoryview(read.input)[:5]) in _EMPTY:
        text = "`input` must be a text, tokens, or a list of those, and not empty"
        raise BadRequest(text, param="input", code="invalid_value")
    if read.dimensions is None:
        return Asked(model=model, body=body)
    if not is_whole_number(read.dimensions) or read.dimensions < 1:
        raise BadRequest("`dimensions` must be a whole number from 1", param="dimensions", code="invalid_value")
    if read.encoding_format not in (None, "float", "base64"):
        text = '`encoding_format` must be "float" or "base64"'
        raise BadRequest(text, param="encoding_format", code="invalid_value")
    # As base64 vectors are a quarter as long, and exact.
    body = change_fields(body, {"dimensions": None, "encoding_format": "base64"})
    return Asked(model=model, body=body, content=Shape(read.dimensions, read.encoding_format == "base64"))


def call_embeddings(asked: Asked, facts: Facts, turn: Turn) -> Call:
    # llama-server's answer repeats the name that was asked for.
    translation = Shortened(asked.content) if asked.content is not None else None
    return Call(path=PATH, body=asked.body, translation=translation)


class Shortened:
    """A `Translation`: the first dimensions of each vector, brought back to length 1."""

    content_type = b"application/json"

    def __init__(self, shape: Shape) -> None:
        self._shape = shape

    def feed(self, data: bytes, now_ns: int) -> bytes:
        raise ValueError("embeddings are not streamed")

    def end(self, now_ns: int) -> bytes:
        return b""

    def whole(self, body: bytes, now_ns: int) -> bytes:
        """Raises `BadRequest` when the model's vectors are shorter than what was asked for."""
        answer = _ANSWER.decode(body)
        vectors = [
            {"object": "embedding", "index": item.index, "embedding": self._shorten(b64decode(item.embedding))}
            for item in answer.data
        ]
        return msgspec.json.encode({"object": "list", "data": vectors, "model": answer.model, "usage": answer.usage})

    def fail(self, problem: Problem, now_ns: int) -> bytes:
        return render_stream_error(problem)

    def _shorten(self, vector: bytes) -> Any:
        wanted = self._shape.dimensions
        if len(vector) < wanted * 4:
            text = f"`dimensions` is {wanted}, but this model's vectors have {len(vector) // 4}"
            raise BadRequest(text, param="dimensions", code="invalid_value")
        layout = f"<{wanted}f"
        values = struct.unpack_from(layout, vector)
        length = math.hypot(*values) or 1.0
        shortened = [value / length for value in values]
        return b64encode(struct.pack(layout, *shortened)).decode() if self._shape.base64 else shortened


ROUTES: Final = (
    Route(
        path=PATH,
        dialect=OPENAI,
        read=read_embeddings,
        call=call_embeddings,
        shape=EmbeddingsBody,
        needs=("model", "input"),
        about="Texts as vectors; `dimensions` shortens them",
        example='{"model": "embedder", "input": "llamas"}',
    ),
)

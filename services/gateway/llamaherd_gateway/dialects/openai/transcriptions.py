"""`POST /v1/audio/transcriptions`: a form with a sound, answered as JSON or as plain text."""

import re
from collections.abc import Sequence
from typing import Final

import msgspec

from llamaherd_gateway.bodies import model_of
from llamaherd_gateway.dialects.dialect import EVENTS, JSON, Asked, Call, Facts, Header, Route, Turn
from llamaherd_gateway.dialects.openai.errors import OPENAI, render_stream_error
from llamaherd_gateway.dialects.openai.forms import content_type_of, find_fields
from llamaherd_gateway.problems import BadRequest, Problem

PATH: Final = "/v1/audio/transcriptions"

_NUMBERS: Final = {
    "max_tokens": re.compile(r"[0-9]{1,9}"),
    "temperature": re.compile(r"([0-9]{1,9}\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]{1,2})?", re.IGNORECASE),
}
"""Fields of the form that llama-server reads as numbers. What is none, it answers with the name of a C++ function."""


class _Answer(msgspec.Struct):
    text: str


_ANSWER: Final = msgspec.json.Decoder(_Answer)


class Form(msgspec.Struct, frozen=True):
    """What the call needs to know."""

    content_type: bytes
    """With the boundary."""
    text: bool
    """The transcript alone is wanted, not JSON."""


def read_transcription(body: bytes, headers: Sequence[Header] = ()) -> Asked:
    """Raises `BadRequest`."""
    content_type = content_type_of(headers)
    fields = find_fields(body, content_type)

    def value(name: str) -> str | None:
        return body[fields[name]].decode("utf-8", "replace").strip() if name in fields else None

    model = model_of(value("model"))
    if "file" not in fields:
        raise BadRequest("the form has no `file`: the sound to transcribe", param="file", code="missing_file")
    response_format = value("response_format") or "json"
    if response_format not in ("json", "text"):
        text = (
            f"`response_format` {response_format!r} is not supported: llama-server knows no times, only `json`, `text`"
        )
        raise BadRequest(text, param="response_format", code="invalid_value")
    if response_format == "text":
        place = fields["response_format"]
        body = body[: place.start] + b"json" + body[place.stop :]
    for name, number in _NUMBERS.items():
        if (said := value(name)) is not None and not number.fullmatch(said):
            raise BadRequest(f"`{name}` must be a number, not {said!r}", param=name, code="invalid_value")
    stream = value("stream") == "true"
    wants = Form(content_type, response_format == "text" and not stream)
    return Asked(model=model, stream=stream, body=body, content=wants)


def call_transcription(asked: Asked, facts: Facts, turn: Turn) -> Call:
    form: Form = asked.content
    translation = Transcript() if form.text else None
    return Call(path=PATH, body=asked.body, translation=translation, content_type=form.content_type)


class Transcript:
    """A `Translation`: only the text."""

    content_type = b"text/plain; charset=utf-8"

    def feed(self, data: bytes, now_ns: int) -> bytes:
        raise ValueError("no stream was asked for")

    def end(self, now_ns: int) -> bytes:
        return b""

    def whole(self, body: bytes, now_ns: int) -> bytes:
        return _ANSWER.decode(body).text.encode()

    def fail(self, problem: Problem, now_ns: int) -> bytes:
        return render_stream_error(problem)


ROUTES: Final = (
    Route(
        path=PATH,
        dialect=OPENAI,
        read=read_transcription,
        call=call_transcription,
        needs=("model", "file"),
        takes="multipart/form-data",
        gives=(JSON, EVENTS, "text/plain"),
        about="A sound as text, by a model that hears; `response_format` is `json` or `text`",
        example="-F model=listener -F file=@speech.wav",
        example_status=400,
    ),
)

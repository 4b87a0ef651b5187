"""Transcriptions: the model's name is found in a form, and a form is never trusted."""

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamaherd_gateway.dialects.dialect import Asked, Call, Facts, Turn
from llamaherd_gateway.dialects.openai.forms import find_fields
from llamaherd_gateway.dialects.openai.transcriptions import call_transcription, read_transcription
from llamaherd_gateway.problems import BadRequest

SOUND = b"RIFF\r\n--not the boundary\r\n\r\n\x00\xff"
KIND = b"multipart/form-data; boundary=xyz"


def form(*fields: tuple[str, str | bytes]) -> bytes:
    parts = []
    for name, value in fields:
        told = f'form-data; name="{name}"' + ('; filename="a.wav"' if isinstance(value, bytes) else "")
        content = value if isinstance(value, bytes) else value.encode()
        parts.append(b"--xyz\r\nContent-Disposition: %b\r\n\r\n%b\r\n" % (told.encode(), content))
    return b"".join(parts) + b"--xyz--\r\n"


def read(body: bytes, content_type: bytes = KIND) -> Asked:
    return read_transcription(body, [(b"host", b"h"), (b"content-type", content_type)])


def call(body: bytes) -> Call:
    return call_transcription(read(body), Facts(model="hearer"), Turn(request_id="a", received_ns=0))


def refusal(body: bytes, content_type: bytes = KIND) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        read(body, content_type)
    return caught.value


def test_a_form_is_passed_on_as_it_is() -> None:
    body = form(("file", SOUND), ("model", "hearer"), ("language", "en"))
    passed = call(body)
    assert read(body).model == "hearer"
    assert passed.body is body
    assert passed.content_type == KIND
    assert passed.translation is None


def test_a_stream_may_be_asked_for() -> None:
    assert read(form(("model", "m"), ("stream", "true"), ("file", SOUND))).stream


def test_plain_text_is_made_from_json() -> None:
    body = form(("model", "m"), ("response_format", "text"), ("file", SOUND))
    passed = call(body)
    fields = find_fields(passed.body, KIND)
    assert passed.body[fields["response_format"]] == b"json"
    assert passed.body[fields["file"]] == SOUND
    answer = json.dumps({"type": "transcript.text.done", "text": "Hällo"}).encode()
    assert passed.translation.whole(answer, 0) == "Hällo".encode()
    assert passed.translation.content_type.startswith(b"text/plain")


def test_what_is_missing_or_unknown_is_named() -> None:
    assert refusal(form(("file", SOUND))).param == "model"
    assert refusal(form(("model", "m"))).param == "file"
    assert refusal(form(("model", "m"), ("file", SOUND), ("response_format", "srt"))).param == "response_format"


@pytest.mark.parametrize(
    ("name", "value"), [("max_tokens", "many"), ("max_tokens", ""), ("temperature", "hot"), ("temperature", "1.0.0")]
)
def test_what_must_be_a_number_and_is_none_is_named(name: str, value: str) -> None:
    refused = refusal(form(("model", "m"), (name, value), ("file", SOUND)))

    assert (refused.param, refused.message) == (name, f"`{name}` must be a number, not {value!r}")


@pytest.mark.parametrize(
    ("name", "value"), [("max_tokens", "16"), ("temperature", "0"), ("temperature", "0.25"), ("temperature", "1e-05")]
)
def test_numbers_are_passed_on(name: str, value: str) -> None:
    body = form(("model", "m"), (name, value), ("file", SOUND))

    assert call(body).body is body


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"{}", b"application/json", 415),
        (b"{}", b"", 415),
        (b"--xyz--", b"multipart/form-data", 415),
        (b"no boundary", KIND, 400),
        (b"x--xyz\r\n", KIND, 400),
        (b"--xyz\r\nContent-Disposition: form-data; name=model\r\n\r\nm", KIND, 400),
        (b"--xyz\r\nContent-Disposition: form-data; name=model", KIND, 400),
        (b"--xyz\r\n\r\n\r\n" * 70 + b"--xyz--", KIND, 400),
    ],
)
def test_a_broken_form_is_refused(body: bytes, content_type: bytes, status: int) -> None:
    error = refusal(body, content_type)
    assert error.status == status
    assert error.code == "invalid_form"


def test_a_quoted_boundary_is_understood() -> None:
    assert read(form(("model", "m"), ("file", SOUND)), b'Multipart/Form-Data; charset=x; boundary="xyz"').model == "m"


@settings(max_examples=50)
@given(st.lists(st.sampled_from([b"--xyz", b"--", b"\r\n", b"\r\n\r\n", b'; name="model"', b"m", b"xyz"])))
def test_any_form_is_read_or_refused(parts: list[bytes]) -> None:
    with contextlib.suppress(BadRequest):
        assert read(b"".join(parts)).model is not None

"""Reading a request's JSON body, with the place of the mistake when there is one."""

import json
from typing import Final, TypeVar

import msgspec

from llamaherd_gateway.problems import BadRequest

RELOCATED_BYTES: Final = 2**20
"""A broken body larger than this is not read a second time to locate the mistake."""

T = TypeVar("T")


def decode_body(decoder: "msgspec.json.Decoder[T]", body: bytes) -> T:
    """Raises `BadRequest`: line, column and byte of what is no JSON; the field that has the wrong type."""
    try:
        # msgspec does not look into what it skips, and whoever reads that later would stumble.
        body.isascii() or body.decode()
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise BadRequest(_describe_shape(str(error)), code="invalid_type") from error
    except msgspec.DecodeError as error:
        raise BadRequest(_describe(body, str(error)), code="invalid_json") from error
    except UnicodeDecodeError as error:
        raise BadRequest(f"the request's body is not UTF-8 (byte {error.start})", code="invalid_json") from error
    except RecursionError as error:
        raise BadRequest("the request's body is nested too deeply", code="invalid_json") from error


def model_of(model: object) -> str:
    """The request's `model`, which must be there. Raises `BadRequest`."""
    if model is None:
        raise BadRequest("the request names no model: set `model`", param="model", code="missing_model")
    if not isinstance(model, str):
        raise BadRequest("`model` must be a string", param="model", code="invalid_model")
    return model


def _describe_shape(error: str) -> str:
    """msgspec's sentence: ``Expected `int`, got `str` - at `$.max_tokens` ``."""
    said, _, path = error.partition(" - at ")
    path = path.strip("`").removeprefix("$").removeprefix(".")
    if not path and not said.startswith("Expected"):
        return f"the request's body cannot be read: {said[:1].lower()}{said[1:]}"
    if not path:
        return 'the request\'s body must be a JSON object like {"model": "...", ...}'
    return f"`{path}`: {said[:1].lower()}{said[1:]}"


def _describe(body: bytes, error: str) -> str:
    """What is wrong, with line and column (from 1) and byte (from 0) of the first mistake."""
    text, _, position = error.partition(" (byte ")
    if not position:
        at = len(body)
        text = "the text ends too early" if body.strip() else "the body is empty"
    else:
        # msgspec's position may be behind the mistake; the standard library's is exact, and slower.
        at = _exact_position(body, int(position.rstrip(")")))
    text = text.removeprefix("JSON is malformed: ")
    before = body[:at]
    line = before.count(b"\n") + 1
    column = len(before.rpartition(b"\n")[2].decode("utf-8", "replace")) + 1
    return f"the request's body is not valid JSON: {text} at line {line} column {column} (byte {at})"


def _exact_position(body: bytes, near: int) -> int:
    if len(body) > RELOCATED_BYTES:
        return near
    try:
        json.loads(body.decode())
    except json.JSONDecodeError as error:
        return len(error.doc[: error.pos].encode())
    except UnicodeDecodeError as error:
        return error.start
    except RecursionError:
        pass
    return near  # something that only the standard library takes for JSON, such as NaN

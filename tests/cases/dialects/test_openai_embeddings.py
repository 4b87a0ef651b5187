"""Embeddings pass through; vectors are shortened as OpenAI shortens them."""

import json
import math
import struct
from base64 import b64decode
from typing import Any

import pytest

from harness.golden import golden
from llamaherd_gateway.dialects.dialect import Call, Facts, Turn
from llamaherd_gateway.dialects.openai.embeddings import call_embeddings, read_embeddings
from llamaherd_gateway.problems import BadRequest

TURN = Turn(request_id="ab" * 8, received_ns=0)


def call(**fields: Any) -> Call:
    body = json.dumps({"model": "random", "input": "Hello", **fields}).encode()
    return call_embeddings(read_embeddings(body), Facts(model="random"), TURN)


def refusal(**fields: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        call(**fields)
    return caught.value


def shortened(**fields: Any) -> Any:
    answer = json.loads(call(**fields).translation.whole(golden("embeddings_base64.json"), 0))
    return answer["data"][0]["embedding"]


@pytest.mark.parametrize("given", ["Hello", ["a", "b"], [1, 2], [[1], [2]]])
def test_a_request_is_passed_on_byte_for_byte(given: Any) -> None:
    body = json.dumps({"model": "m", "input": given, "encoding_format": "base64"}, indent=1).encode()
    passed = call_embeddings(read_embeddings(body), Facts(model="other"), TURN)
    assert passed.body is body
    assert passed.translation is None  # llama-server repeats the name that was asked for


@pytest.mark.parametrize("given", ["", [], None])
def test_nothing_has_no_vector(given: Any) -> None:
    assert refusal(input=given).param == "input"


def test_a_shortened_vector_has_length_one_and_the_same_direction() -> None:
    asked = json.loads(call(dimensions=8).body)
    assert "dimensions" not in asked
    assert asked["encoding_format"] == "base64"
    full = json.loads(golden("embeddings.json"))["data"][0]["embedding"]
    vector = shortened(dimensions=8)
    assert len(vector) == 8
    assert math.hypot(*vector) == pytest.approx(1)
    ratios = [short / long for short, long in zip(vector, full[:8], strict=True)]
    assert ratios == pytest.approx([ratios[0]] * 8, rel=1e-5)


def test_a_client_that_wants_base64_gets_little_endian_floats() -> None:
    vector = shortened(dimensions=4, encoding_format="base64")
    assert struct.unpack("<4f", b64decode(vector)) == pytest.approx(shortened(dimensions=4))


def test_everything_else_of_the_answer_is_kept() -> None:
    body = call(dimensions=2, input=["a", "b"]).translation.whole(golden("embeddings_base64.json"), 0)
    answer, full = json.loads(body), json.loads(golden("embeddings_base64.json"))
    assert {**answer, "data": []} == {**full, "data": []}
    assert [item["index"] for item in answer["data"]] == [item["index"] for item in full["data"]]


def test_more_dimensions_than_there_are_is_the_clients_mistake() -> None:
    with pytest.raises(BadRequest, match="have 32"):
        shortened(dimensions=33)


@pytest.mark.parametrize("dimensions", [0, -1, 1.5, "8", True])
def test_dimensions_are_a_whole_number(dimensions: Any) -> None:
    assert refusal(dimensions=dimensions).param == "dimensions"


def test_an_unknown_encoding_of_shortened_vectors_is_refused() -> None:
    assert refusal(dimensions=2, encoding_format="hex").param == "encoding_format"


@pytest.mark.parametrize("body", [b"", b"[]", b'{"data": [{"embedding": "?", "index": 0}]}', b'{"data": 5}'])
def test_an_answer_that_makes_no_sense_is_a_value_error(body: bytes) -> None:
    with pytest.raises((ValueError, BadRequest)):
        call(dimensions=2).translation.whole(body, 0)

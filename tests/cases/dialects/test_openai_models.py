"""The list of models as OpenAI's clients read it."""

import json
from typing import Any

import pytest

from llamaherd_gateway.dialects.dialect import Card, Herd, PageRequest
from llamaherd_gateway.dialects.openai import PAGES
from llamaherd_gateway.problems import UnknownModel

HERD = Herd(
    cards=(
        Card(name="bge/small:q8", model="bge/small:q8", modified_ns=1_700_000_000_999_999_999),
        Card(name="gpt-4o", model="cria", capabilities=frozenset({"vision", "tools", "completion", "audio"})),
    ),
    now_ns=0,
    version="1",
)
PAGE = {page.path: page for page in PAGES}


def answer(path: str, **parameters: str) -> Any:
    return json.loads(PAGE[path].answer(PageRequest(method="GET", parameters=parameters), HERD).body)


def test_models_are_listed_by_every_name() -> None:
    listed = answer("/v1/models")
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["bge/small:q8", "gpt-4o"]


def test_one_model_is_told_as_in_the_list() -> None:
    told = answer("/v1/models/{id*}", id="bge/small:q8")
    assert told == {
        "id": "bge/small:q8",
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "llamaherd",
        "architecture": {"input_modalities": ["text"], "output_modalities": ["text"]},
        "capabilities": ["completion"],
    }
    assert told == answer("/v1/models")["data"][0]


def test_a_model_that_sees_and_hears_says_so() -> None:
    told = answer("/v1/models/{id*}", id="gpt-4o")

    assert told["architecture"]["input_modalities"] == ["text", "image", "audio"]
    assert told["capabilities"] == ["audio", "completion", "tools", "vision"]


def test_an_unknown_model_is_not_found_and_the_known_are_named() -> None:
    with pytest.raises(UnknownModel, match="gpt-4o"):
        answer("/v1/models/{id*}", id="gpt-4")


def test_an_empty_herd_is_an_empty_list() -> None:
    empty = Herd(cards=(), now_ns=0, version="1")
    assert json.loads(PAGE["/v1/models"].answer(PageRequest(method="GET"), empty).body)["data"] == []

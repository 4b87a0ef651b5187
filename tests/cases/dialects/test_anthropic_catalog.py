"""The models in Anthropic's shape, page by page."""

import json
from typing import Any

import pytest

from llamaherd_gateway.dialects.anthropic import PAGES
from llamaherd_gateway.dialects.dialect import Card, Herd, Loaded, PageRequest
from llamaherd_gateway.problems import BadRequest
from llamaherd_shared.errors import NotFound

LIST, SHOW = PAGES


def card(name: str, **facts: Any) -> Card:
    return Card(name=name, model=name, modified_ns=1_700_000_000_123_456_789, **facts)


HERD = Herd(
    cards=(*(card(name) for name in "abcde"), card("vectors", capabilities=frozenset({"embedding"}))),
    now_ns=0,
    version="1",
)


def listed(**query: str) -> Any:
    return json.loads(LIST.answer(PageRequest(method="GET", query=query), HERD).body)


def shown(name: str, herd: Herd = HERD) -> Any:
    return json.loads(SHOW.answer(PageRequest(method="GET", parameters={"model": name}), herd).body)


def test_a_model_is_described() -> None:
    loaded = Loaded(name="n/x/0", node="n", state="ready", context_tokens=2048, slots=2)
    herd = Herd(cards=(card("p/x:1", title="X", context_tokens=8192, loaded=(loaded,)),), now_ns=0, version="1")

    assert shown("p/x:1", herd) == {
        "type": "model",
        "id": "p/x:1",
        "display_name": "X",
        "created_at": "2023-11-14T22:13:20Z",
        "lifecycle": "active",
        "max_input_tokens": 2048,
    }
    assert shown("a")["display_name"] == "a"
    assert shown("a")["max_input_tokens"] is None


@pytest.mark.parametrize(
    ("query", "ids", "has_more"),
    [
        ({}, "abcde", False),
        ({"limit": "2"}, "ab", True),
        ({"limit": "2", "after_id": "b"}, "cd", True),
        ({"limit": "2", "after_id": "d"}, "e", False),
        ({"after_id": "e"}, "", False),
        ({"limit": "2", "before_id": "d"}, "bc", True),
        ({"limit": "9", "before_id": "c"}, "ab", False),
        ({"limit": "", "after_id": "", "before_id": "", "beta": "true"}, "abcde", False),
    ],
)
def test_pages_follow_each_other_in_both_directions(query: dict[str, str], ids: str, has_more: bool) -> None:
    page = listed(**query)

    assert [model["id"] for model in page["data"]] == list(ids)
    assert page["has_more"] is has_more
    assert (page["first_id"], page["last_id"]) == ((ids[0], ids[-1]) if ids else (None, None))


@pytest.mark.parametrize(
    "query",
    [
        {"limit": "0"},
        {"limit": "1001"},
        {"limit": "-1"},
        {"limit": "ten"},
        {"limit": "²"},
        {"after_id": "nobody"},
        {"before_id": "nobody"},
        {"after_id": "a", "before_id": "c"},
    ],
)
def test_a_limit_or_cursor_that_makes_no_sense_is_refused(query: dict[str, str]) -> None:
    with pytest.raises(BadRequest):
        listed(**query)


@pytest.mark.parametrize("name", ["nobody", "vectors", ""])
def test_what_cannot_answer_a_message_is_not_found(name: str) -> None:
    with pytest.raises(NotFound):
        shown(name)

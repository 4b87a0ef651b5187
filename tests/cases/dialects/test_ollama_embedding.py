"""Ollama's embeddings, from llama-server's real ones."""

import asyncio
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamaherd_gateway.dialects.dialect import Asked, Facts, Turn
from llamaherd_gateway.dialects.ollama.embedding import call, prepare, read_embed, read_embeddings, settle
from llamaherd_gateway.problems import BadRequest

GOLDEN = Path(__file__).parents[2] / "golden" / "llama_server"
TURN = Turn(request_id="ab", received_ns=1_000)
FACTS = Facts(model="own", context_tokens=65, capabilities=frozenset({"embedding"}))


def embed(**fields: Any) -> Asked:
    return read_embed(json.dumps({"model": "m", **fields}).encode())


def answer(asked: Asked, name: str) -> dict[str, Any]:
    made = call(asked, FACTS, TURN).translation
    record: dict[str, Any] = json.loads(made.whole((GOLDEN / name).read_bytes(), 2_000))
    return record


class LlamaServer:
    """Takes every letter for a token, with one before and one behind."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def __call__(self, path: str, content: Any) -> Any:
        self.asked.append(path)
        if path == "/tokenize":
            letters = [ord(letter) for letter in content["content"]]
            return {"tokens": [1, *letters, 2] if content["add_special"] else letters}
        return {"content": "".join(map(chr, content["tokens"]))}


def test_vectors_of_several_texts_come_in_their_order() -> None:
    recorded = json.loads((GOLDEN / "embeddings_two.json").read_bytes())

    record = answer(embed(input=["Hello", "llamas"]), "embeddings_two.json")

    assert record == {
        "model": "m",
        "embeddings": [each["embedding"] for each in recorded["data"]],
        "total_duration": 1_000,
        "load_duration": 1,
        "prompt_eval_count": recorded["usage"]["prompt_tokens"],
    }


def test_the_old_route_has_one_vector_and_nothing_else() -> None:
    record = answer(read_embeddings(b'{"model": "m", "prompt": "Hello"}'), "embeddings.json")
    assert record == {"embedding": json.loads((GOLDEN / "embeddings.json").read_bytes())["data"][0]["embedding"]}


def test_dimensions_are_cut_and_the_rest_has_length_one() -> None:
    whole = answer(embed(input="Hello"), "embeddings.json")["embeddings"][0]
    cut = answer(embed(input="Hello", dimensions=5), "embeddings.json")["embeddings"][0]

    assert math.isclose(sum(number * number for number in cut), 1)
    assert all(math.isclose(a * whole[0], b * cut[0]) for a, b in zip(cut, whole[:5], strict=True))
    assert answer(embed(input="Hello", dimensions=10**6), "embeddings.json")["embeddings"] == [whole]


def test_some_old_models_keep_their_lengths_on_the_old_route() -> None:
    def sent(asked: Asked, architecture: str) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(call(asked, Facts(model="own", architecture=architecture), TURN).body)
        return body

    old = read_embeddings(b'{"model": "m", "prompt": "Hello"}')
    assert sent(old, "nomic-bert")["embd_normalize"] == -1
    assert sent(old, "bert") == {"model": "own", "input": ["Hello"]}
    assert "embd_normalize" not in sent(embed(input="Hello"), "nomic-bert")


def test_a_text_that_is_too_long_is_cut_to_what_fits() -> None:
    server = LlamaServer()
    asked = asyncio.run(prepare(embed(input=["x" * 100, "short"]), FACTS, server))

    assert asked.content.texts == ("x" * 62, "short")
    assert server.asked == ["/tokenize", "/tokenize", "/detokenize", "/tokenize"]


def test_the_batch_limits_too() -> None:
    facts = Facts(model="own", context_tokens=65, batch_tokens=32)
    asked = asyncio.run(prepare(embed(input="x" * 100), facts, LlamaServer()))
    assert asked.content.texts == ("x" * 30,)


def test_a_text_that_must_not_be_cut_is_refused() -> None:
    with pytest.raises(BadRequest, match="the input length exceeds the context length"):
        asyncio.run(prepare(embed(input="x" * 100, truncate=False), FACTS, LlamaServer()))


@pytest.mark.parametrize(("text", "facts"), [("x" * 50, FACTS), ("x" * 5000, Facts(model="own"))])
def test_nothing_is_asked_about_short_texts_or_when_no_limit_is_known(text: str, facts: Facts) -> None:
    server = LlamaServer()
    assert asyncio.run(prepare(embed(input=text), facts, server)).content.texts == (text,)
    assert server.asked == []


@pytest.mark.parametrize(
    ("read", "body", "settled"),
    [
        (read_embed, {"input": []}, {"model": "m", "embeddings": []}),
        (read_embeddings, {"prompt": ""}, {"embedding": []}),
    ],
)
def test_without_a_text_there_is_no_vector(
    read: Callable[[bytes], Asked], body: dict[str, Any], settled: dict[str, Any]
) -> None:
    asked = read(json.dumps({"model": "m", **body}).encode())
    assert asked.action == "load"
    assert json.loads(settle(asked, TURN)) == settled


@pytest.mark.parametrize("body", [b"", b"{}", b'{"data": [{"embedding": 1}]}', b"<html>"])
def test_an_answer_that_makes_no_sense_is_an_error(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        call(embed(input="a", dimensions=1), FACTS, TURN).translation.whole(body, 2_000)

"""The unmodified `ollama` package against a whole herd."""

import json
from collections.abc import Iterator

import gguf
import httpx
import ollama
import pytest

from harness.herd import Herd
from harness.random_gguf import write_random_gguf
from harness.scripted_gguf import write_scripted_gguf

WHO = [{"role": "user", "content": "Who are you?"}]
COLD = {"temperature": 0}


def get_weather(city: str) -> str:
    """The weather of a city.

    Args:
      city: its name
    """
    return f"Rain in {city}."


@pytest.fixture(scope="module")
def client(herd: Herd) -> Iterator[ollama.Client]:
    with ollama.Client(host=herd.gateway_url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def models(herd: Herd) -> Iterator[None]:
    """`scripted` thinks, calls tools and fills gaps; `embedder` gives vectors."""
    paths = [
        write_scripted_gguf(herd.models_dir / "scripted.gguf"),
        write_random_gguf(herd.models_dir / "embedder.gguf", pooling=gguf.PoolingType.MEAN, chat=False),
    ]
    herd.eventually(
        lambda: {"scripted", "embedder"} <= {entry["model"] for entry in herd.fleet()["models"]},
        within_s=15,
        what="the models are found",
    )
    yield
    for path in paths:
        path.unlink()
        herd.cli("unload", path.stem)


def test_the_list_names_the_model_and_what_it_is(client: ollama.Client) -> None:
    (cria,) = [model for model in client.list().models if model.model == "cria:latest"]

    assert cria.size is not None
    assert cria.size > 1_000_000
    assert cria.details is not None
    assert cria.details.format == "gguf"
    assert cria.details.parameter_size


def test_a_model_that_was_asked_is_among_the_running_ones(client: ollama.Client) -> None:
    client.generate("cria", "Hi", options={"num_predict": 1})

    (cria,) = [model for model in client.ps().models if model.model == "cria:latest"]
    assert cria.context_length
    assert cria.expires_at is not None


def test_a_model_is_shown(client: ollama.Client) -> None:
    shown = client.show("cria")

    assert shown.modelinfo is not None
    assert shown.modelinfo["general.architecture"] == "llama"
    assert shown.template
    assert shown.capabilities == ["completion"]


def test_a_chat_answers_and_repeats_the_name_as_typed(client: ollama.Client) -> None:
    for name in ("cria", "cria:latest"):
        answer = client.chat(name, WHO, options=COLD)
        assert "cria" in (answer.message.content or "")
        assert (answer.model, answer.done, answer.done_reason) == (name, True, "stop")
        assert answer.eval_count
        assert isinstance(answer.total_duration, int)


def test_a_streamed_chat_says_the_same_as_a_plain_one(client: ollama.Client) -> None:
    plain = client.chat("cria", WHO, options=COLD).message.content
    parts = list(client.chat("cria", WHO, stream=True, options=COLD))

    assert "".join(part.message.content or "" for part in parts) == plain
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]


def test_a_generation_goes_on_where_its_context_ended(client: ollama.Client) -> None:
    first = client.generate("cria", "Hello", options=COLD)
    second = client.generate("cria", "What is llamaherd?", context=first.context, options=COLD)

    assert "llamaherd" in second.response.lower()
    assert (second.prompt_eval_count or 0) > (first.prompt_eval_count or 0)


def test_a_raw_prompt_is_continued_with_probabilities(client: ollama.Client) -> None:
    parts = client.generate("cria", "Once", raw=True, stream=True, logprobs=True, options=COLD | {"num_predict": 3})

    probabilities = [token for part in parts for token in part.logprobs or ()]
    assert len(probabilities) == 3


def test_an_answer_follows_a_schema(client: ollama.Client) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    answer = client.chat("cria", WHO, format=schema, options=COLD | {"num_predict": 64})
    assert isinstance(json.loads(answer.message.content or "")["ok"], bool)


def test_a_tool_is_called_and_its_result_is_read(client: ollama.Client, models: None) -> None:
    question = {"role": "user", "content": "the weather"}
    called = client.chat("scripted", [question], tools=[get_weather], options=COLD).message
    assert called.tool_calls is not None
    (call,) = called.tool_calls
    assert (call.function.name, call.function.arguments) == ("get_weather", {"city": "Paris"})

    result = {"role": "tool", "tool_name": "get_weather", "content": get_weather(**call.function.arguments)}
    answer = client.chat("scripted", [question, called, result], tools=[get_weather], options=COLD)
    assert answer.message.content == "Hello there, friend."

    parts = client.chat("scripted", [question], tools=[get_weather], options=COLD, stream=True)
    assert [call.function.name for part in parts for call in part.message.tool_calls or ()] == ["get_weather"]


def test_thoughts_are_told_from_the_answer(client: ollama.Client, models: None) -> None:
    question = [{"role": "user", "content": "think"}]
    thought = client.chat("scripted", question, options=COLD).message
    silent = client.chat("scripted", question, think=False, options=COLD).message

    assert (thought.content, (thought.thinking or "").strip()) == ("It is 4.", "Two and two are four.")
    assert not silent.thinking


def test_a_gap_is_filled(client: ollama.Client, models: None) -> None:
    filled = client.generate("scripted", "def add(a, b):\n", suffix="\n", options=COLD)
    assert filled.response == "    return a + b"


def test_texts_become_vectors(client: ollama.Client, models: None) -> None:
    both = client.embed("embedder", ["one", "two"])
    short = client.embed("embedder", "one", dimensions=8)

    assert [len(vector) for vector in both.embeddings] == [64, 64]
    assert both.prompt_eval_count
    assert sum(number * number for number in short.embeddings[0]) == pytest.approx(1)
    assert len(client.embeddings("embedder", "one").embedding) == 64


def test_a_model_is_unloaded_and_loaded_without_a_prompt(client: ollama.Client, herd: Herd) -> None:
    assert client.generate("cria", "", keep_alive=0).done_reason == "unload"
    herd.eventually(
        lambda: "cria:latest" not in {model.model for model in client.ps().models},
        within_s=10,
        what="cria is unloaded",
    )
    assert client.chat("cria", []).done_reason == "load"
    assert "cria:latest" in {model.model for model in client.ps().models}


@pytest.mark.parametrize(
    ("model", "parameters", "status", "message"),
    [
        ("nothing", {}, 404, "model 'nothing' not found"),
        ("cria", {"think": True}, 400, '"cria" does not support thinking'),
        ("cria", {"tools": [get_weather]}, 400, "registry.ollama.ai/library/cria:latest does not support tools"),
        ("cria", {"keep_alive": "5"}, 400, 'time: missing unit in duration "5"'),
        ("cria", {"options": {"top_k": "x"}}, 400, 'option "top_k" must be of type integer'),
    ],
)
def test_refusals_have_ollamas_words(
    client: ollama.Client, model: str, parameters: dict[str, object], status: int, message: str
) -> None:
    for stream in (False, True):
        with pytest.raises(ollama.ResponseError) as caught:
            list(client.chat(model, WHO, stream=stream, **parameters))  # type: ignore[call-overload]
        assert (caught.value.status_code, caught.value.error) == (status, message)


def test_what_needs_ollamas_cloud_is_refused(client: ollama.Client, herd: Herd) -> None:
    with pytest.raises(ollama.ResponseError, match="push is not supported"):
        client.push("cria")
    answer = httpx.post(f"{herd.gateway_url}/api/experimental/web_search", json={"query": "llama"})
    assert (answer.status_code, answer.json()) == (
        403,
        {"error": "ollama cloud is disabled: web search is unavailable"},
    )

"""The unmodified `openai` client library, pointed at the gateway."""

import math
from collections.abc import Iterator
from typing import Any

import gguf
import openai
import pydantic
import pytest

from harness.herd import Herd
from harness.random_gguf import write_random_gguf
from harness.scripted_gguf import write_scripted_gguf

QUESTION: Any = [{"role": "user", "content": "Who are you?"}]
PARAMETERS: Any = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION: Any = {"name": "get_weather", "description": "The weather of a city", "parameters": PARAMETERS}
TOOL: Any = {"type": "function", "function": FUNCTION}
FLAT_TOOL: Any = {"type": "function", **FUNCTION}
WEATHER: Any = [{"role": "user", "content": "the weather"}]


class Town(pydantic.BaseModel):
    city: str
    inhabitants: int


@pytest.fixture(scope="module")
def client(herd: Herd) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{herd.gateway_url}/v1", api_key="x", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def models(herd: Herd) -> Iterator[None]:
    """`openai-scripted` thinks, calls tools and fills gaps; `openai-embedder` gives vectors."""
    paths = [
        write_scripted_gguf(herd.models_dir / "openai-scripted.gguf"),
        write_random_gguf(herd.models_dir / "openai-embedder.gguf", pooling=gguf.PoolingType.MEAN, chat=False),
    ]
    names = {path.stem for path in paths}
    herd.eventually(
        lambda: names <= {entry["model"] for entry in herd.fleet()["models"]}, within_s=15, what="models are found"
    )
    yield
    for path in paths:
        path.unlink()
        herd.cli("unload", path.stem)


def test_a_chat_is_answered_at_once_or_in_pieces(client: openai.OpenAI) -> None:
    plain = client.chat.completions.create(model="cria", messages=QUESTION, max_tokens=40, temperature=0)
    chunks = list(
        client.chat.completions.create(
            model="cria",
            messages=QUESTION,
            max_tokens=40,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )

    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == plain.choices[0].message.content
    assert "cria" in text
    assert plain.usage is not None
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == plain.usage.completion_tokens


def test_a_name_with_a_tag_is_the_name_in_the_answer(client: openai.OpenAI) -> None:
    plain = client.chat.completions.create(model="cria:latest", messages=QUESTION, max_tokens=4)
    stream = client.chat.completions.create(model="cria:latest", messages=QUESTION, max_tokens=4, stream=True)
    assert {plain.model, *(chunk.model for chunk in stream)} == {"cria:latest"}


@pytest.mark.usefixtures("models")
def test_a_named_tool_is_called_and_its_result_read(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="openai-scripted",
        messages=WEATHER,
        tools=[TOOL],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
    ) as stream:
        message = stream.get_final_completion().choices[0].message
    assert message.tool_calls is not None
    (call,) = message.tool_calls
    assert (call.function.name, call.function.arguments) == ("get_weather", '{"city": "Paris"}')

    told = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    history: Any = [*WEATHER, message.model_dump(exclude_none=True, exclude={"parsed"}), told]
    answer = client.chat.completions.create(model="openai-scripted", messages=history, tools=[TOOL])
    assert answer.choices[0].message.content == "Hello there, friend."


@pytest.mark.usefixtures("models")
def test_functions_of_old_are_called(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="openai-scripted", messages=WEATHER, functions=[FUNCTION])
    call = answer.choices[0].message.function_call
    assert call is not None
    assert (call.name, call.arguments) == ("get_weather", '{"city": "Paris"}')
    assert answer.choices[0].finish_reason == "function_call"


@pytest.mark.usefixtures("models")
def test_structured_output_is_parsed(client: openai.OpenAI) -> None:
    question: Any = [{"role": "user", "content": "json"}]
    chat = client.chat.completions.parse(model="openai-scripted", messages=question, response_format=Town)
    response = client.responses.parse(model="openai-scripted", input="json", text_format=Town)
    assert chat.choices[0].message.parsed == response.output_parsed == Town(city="Rome", inhabitants=2_800_000)


@pytest.mark.usefixtures("models")
def test_a_response_is_the_same_in_pieces(client: openai.OpenAI) -> None:
    plain = client.responses.create(model="openai-scripted", input="think")
    with client.responses.stream(model="openai-scripted", input="think") as stream:
        numbers = [event.sequence_number for event in stream]
        streamed = stream.get_final_response()

    assert numbers == list(range(len(numbers)))
    assert plain.output_text == streamed.output_text == "It is 4."
    assert [item.type for item in plain.output] == [item.type for item in streamed.output] == ["reasoning", "message"]
    assert plain.usage is not None
    assert streamed.usage is not None
    assert plain.usage.output_tokens == streamed.usage.output_tokens > 5


@pytest.mark.usefixtures("models")
def test_a_response_may_call_functions_and_be_cut_short(client: openai.OpenAI) -> None:
    asked = client.responses.create(model="openai-scripted", input=WEATHER, tools=[FLAT_TOOL])
    (call,) = asked.output
    assert call.type == "function_call"
    assert call.arguments == '{"city": "Paris"}'
    told = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    history: Any = [*WEATHER, call, told]
    assert client.responses.create(model="openai-scripted", input=history, tools=[FLAT_TOOL]).output_text

    short = client.responses.create(model="openai-scripted", input="hi", max_output_tokens=2)
    assert short.status == "incomplete"
    assert short.incomplete_details is not None
    assert short.incomplete_details.reason == "max_output_tokens"


def test_a_response_goes_on_from_the_one_before(client: openai.OpenAI) -> None:
    settings: Any = {"model": "cria", "temperature": 0}
    first = client.responses.create(input="Who are you?", **settings)
    second = client.responses.create(input="What do you eat?", previous_response_id=first.id, **settings)
    history: Any = [*QUESTION, *first.output, {"role": "user", "content": "What do you eat?"}]
    whole = client.responses.create(input=history, store=False, **settings)

    assert second.output_text == whole.output_text
    assert second.usage is not None
    assert whole.usage is not None
    assert second.usage.input_tokens == whole.usage.input_tokens
    assert second.previous_response_id == first.id
    with client.responses.stream(input="Where?", previous_response_id=second.id, **settings) as stream:
        third = stream.get_final_response()
    assert third.usage is not None
    assert third.usage.input_tokens > second.usage.input_tokens
    counted = client.responses.input_tokens.count(model="cria", input="Where?", previous_response_id=second.id)
    assert counted.input_tokens == third.usage.input_tokens


def test_responses_are_kept_shown_and_deleted(client: openai.OpenAI) -> None:
    first = client.responses.create(model="cria", input="Who are you?", metadata={"topic": "llamas"})
    second = client.responses.create(model="cria", input="Really?", previous_response_id=first.id)

    assert client.responses.retrieve(first.id) == first
    items = list(client.responses.input_items.list(second.id, limit=1, order="asc"))
    assert [item.type for item in items] == ["message"] * 3
    roles = [item.role for item in items if item.type == "message"]
    assert roles == ["user", "assistant", "user"]
    with pytest.raises(openai.BadRequestError, match="Cannot cancel a synchronous response"):
        client.responses.cancel(first.id)

    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="cria", input="So?", previous_response_id=second.id)
    assert caught.value.code == "previous_response_not_found"


@pytest.mark.usefixtures("models")
def test_a_called_function_is_answered_by_its_result_alone(client: openai.OpenAI) -> None:
    asked = client.responses.create(model="openai-scripted", input=WEATHER, tools=[FLAT_TOOL])
    (call,) = asked.output
    assert call.type == "function_call"
    told: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}]
    answered = client.responses.create(
        model="openai-scripted", input=told, tools=[FLAT_TOOL], previous_response_id=asked.id
    )
    assert answered.output_text


@pytest.mark.usefixtures("models")
def test_gaps_are_filled(client: openai.OpenAI) -> None:
    filled = client.completions.create(model="openai-scripted", prompt="def add(a, b):\n", suffix="\n", max_tokens=16)
    assert filled.choices[0].text == "    return a + b"
    with pytest.raises(openai.BadRequestError, match="cannot insert"):
        client.completions.create(model="cria", prompt="a", suffix="b")


def test_texts_go_on_with_probabilities_and_all_tokens_counted(client: openai.OpenAI) -> None:
    both = client.completions.create(
        model="cria", prompt=["Once", "Twice upon"], max_tokens=3, logprobs=1, temperature=0
    )
    assert [choice.index for choice in both.choices] == [0, 1]
    assert both.usage is not None
    assert both.usage.completion_tokens == 6
    logprobs = both.choices[0].logprobs
    assert logprobs is not None
    assert "".join(logprobs.tokens or []) == both.choices[0].text
    echoed = client.completions.create(model="cria", prompt="Once", max_tokens=3, temperature=0, echo=True)
    assert echoed.choices[0].text == "Once" + both.choices[0].text


@pytest.mark.usefixtures("models")
def test_embeddings_are_shortened_in_both_encodings(client: openai.OpenAI) -> None:
    full = client.embeddings.create(model="openai-embedder", input="Hello")
    assert len(full.data[0].embedding) == 64
    for encoding in ("float", "base64"):
        short: Any = client.embeddings.create(
            model="openai-embedder",
            input=["Hello", "llamas"],
            dimensions=8,
            encoding_format=encoding,  # type: ignore[arg-type]
        )
        assert [item.index for item in short.data] == [0, 1]
    vector = client.embeddings.create(model="openai-embedder", input="Hello", dimensions=8).data[0].embedding
    assert math.hypot(*vector) == pytest.approx(1, rel=1e-5)
    assert vector[1] / vector[0] == pytest.approx(full.data[0].embedding[1] / full.data[0].embedding[0], rel=1e-4)


@pytest.mark.usefixtures("models")
def test_more_dimensions_than_a_model_has_are_the_clients_mistake(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="have 64"):
        client.embeddings.create(model="openai-embedder", input="Hello", dimensions=65)


def test_models_are_listed_and_told_one_by_one(client: openai.OpenAI) -> None:
    assert "cria" in [model.id for model in client.models.list()]
    assert client.models.retrieve("cria").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no/such:model")


def test_mistakes_are_the_clients_and_never_repeated(client: openai.OpenAI) -> None:
    eager = client.with_options(max_retries=3)
    picture: Any = [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}]}
    ]
    for asked in (
        lambda: eager.chat.completions.create(model="cria", messages=[]),
        lambda: eager.chat.completions.create(model="cria", messages=picture),
        lambda: eager.chat.completions.create(model="cria", messages=QUESTION, n=99),
        lambda: eager.chat.completions.create(model="cria", messages=QUESTION, max_tokens="many"),  # type: ignore[arg-type]
        lambda: eager.embeddings.create(model="cria", input="Hello"),
        lambda: eager.audio.transcriptions.create(model="cria", file=("a.wav", b"RIFF")),
        lambda: eager.responses.create(model="cria", input="Hello", previous_response_id="resp_1"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            asked()
        assert caught.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError) as missing:
        eager.chat.completions.create(model="nobody", messages=QUESTION)
    assert missing.value.code == "model_not_found"

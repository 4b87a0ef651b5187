"""The unmodified `anthropic` client library, pointed at the gateway."""

import asyncio
import base64
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from harness.herd import Herd
from harness.scripted_gguf import write_scripted_gguf

QUESTION: Any = [{"role": "user", "content": "Who are you?"}]
STEADY = {"temperature": 0}
"""No parameter of the library's own any more."""
WEATHER: Any = {
    "name": "get_weather",
    "description": "The weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@pytest.fixture(scope="module")
def client(herd: Herd) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=herd.gateway_url, auth_token="x", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def scripted(herd: Herd) -> Iterator[str]:
    """A model that thinks and calls tools on command."""
    path = write_scripted_gguf(herd.models_dir / "anthropic-scripted.gguf")
    herd.eventually(
        lambda: [entry for entry in herd.fleet()["models"] if entry["model"] == "anthropic-scripted"],
        within_s=15,
        what="the model is found",
    )
    yield "anthropic-scripted"
    path.unlink()
    herd.cli("unload", "anthropic-scripted")


def test_a_message_is_answered(client: anthropic.Anthropic) -> None:
    message = client.messages.create(model="cria", max_tokens=60, extra_body=STEADY, messages=QUESTION)

    assert "cria" in text_of(message).lower()
    assert (message.type, message.role, message.model, message.stop_reason) == (
        "message",
        "assistant",
        "cria",
        "end_turn",
    )
    assert message.id.startswith("msg_")
    assert message._request_id is not None
    assert message._request_id.startswith("req_")
    assert message.usage.output_tokens > 5
    assert message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0) > 5


def test_a_streamed_message_is_the_plain_one_in_pieces(client: anthropic.Anthropic) -> None:
    plain = client.messages.create(model="cria", max_tokens=60, extra_body=STEADY, messages=QUESTION)
    with client.messages.stream(model="cria", max_tokens=60, extra_body=STEADY, messages=QUESTION) as stream:
        pieces = list(stream.text_stream)
        message = stream.get_final_message()

    assert "".join(pieces) == text_of(plain) == text_of(message)
    assert len(pieces) > 5
    assert (message.stop_reason, message.usage.output_tokens) == (plain.stop_reason, plain.usage.output_tokens)


def test_the_asynchronous_client_streams_too(herd: Herd) -> None:
    async def ask() -> str:
        async with anthropic.AsyncAnthropic(base_url=herd.gateway_url, auth_token="x", max_retries=0) as client:
            async with client.messages.stream(model="cria", max_tokens=8, messages=QUESTION) as stream:
                return await stream.get_final_text()

    assert asyncio.run(ask())


def test_the_stop_sequence_that_was_met_is_named(client: anthropic.Anthropic) -> None:
    request: Any = {"model": "cria", "max_tokens": 60, "extra_body": STEADY, "stop_sequences": ["tiny", "unheard of"]}
    plain = client.messages.create(**request, messages=QUESTION)
    with client.messages.stream(**request, messages=QUESTION) as stream:
        streamed = stream.get_final_message()

    assert (plain.stop_reason, plain.stop_sequence) == ("stop_sequence", "tiny")
    assert (streamed.stop_reason, streamed.stop_sequence) == ("stop_sequence", "tiny")


def test_max_tokens_ends_the_answer(client: anthropic.Anthropic) -> None:
    message = client.messages.create(model="cria", max_tokens=3, messages=QUESTION)

    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 3)


def test_an_answer_that_was_begun_is_continued_and_not_repeated(client: anthropic.Anthropic) -> None:
    messages: Any = [*QUESTION, {"role": "assistant", "content": "I am"}]
    plain = client.messages.create(model="cria", max_tokens=8, extra_body=STEADY, messages=messages)
    with client.messages.stream(model="cria", max_tokens=8, extra_body=STEADY, messages=messages) as stream:
        streamed = stream.get_final_message()

    assert text_of(plain).startswith(" cria")
    assert text_of(streamed) == text_of(plain)


def test_tokens_are_counted_as_they_will_be_used(client: anthropic.Anthropic) -> None:
    counted = client.messages.count_tokens(model="cria", system="Be brief.", messages=QUESTION)
    used = client.messages.create(model="cria", max_tokens=1, system="Be brief.", messages=QUESTION).usage

    assert counted.input_tokens == used.input_tokens + (used.cache_read_input_tokens or 0)


@pytest.mark.parametrize("thinking", [{"type": "enabled", "budget_tokens": 1024}, {"type": "adaptive"}])
def test_thoughts_come_in_a_block_before_the_text(client: anthropic.Anthropic, scripted: str, thinking: Any) -> None:
    request: Any = {"model": scripted, "max_tokens": 2048, "thinking": thinking}
    request["messages"] = [{"role": "user", "content": "think"}]
    plain = client.messages.create(**request)
    with client.messages.stream(**request) as stream:
        streamed = stream.get_final_message()

    assert [block.type for block in plain.content] == ["thinking", "text"]
    assert plain.content[0].type == "thinking"
    assert "four" in plain.content[0].thinking
    assert text_of(plain) == "It is 4."
    assert text_of(streamed) == text_of(plain)
    assert streamed.content[0] == plain.content[0]


@pytest.mark.parametrize("thinking", [{"type": "disabled"}, None])
def test_a_client_that_did_not_ask_for_thoughts_gets_none(
    client: anthropic.Anthropic, scripted: str, thinking: Any
) -> None:
    request: Any = {} if thinking is None else {"thinking": thinking}
    message = client.messages.create(
        model=scripted, max_tokens=64, messages=[{"role": "user", "content": "think"}], **request
    )

    assert [block.type for block in message.content] == ["text"]


def test_a_tool_is_called_and_its_result_answered(client: anthropic.Anthropic, scripted: str) -> None:
    messages: Any = [{"role": "user", "content": "the weather"}]
    plain = client.messages.create(model=scripted, max_tokens=96, tools=[WEATHER], messages=messages)
    with client.messages.stream(model=scripted, max_tokens=96, tools=[WEATHER], messages=messages) as stream:
        streamed = stream.get_final_message()

    assert plain.stop_reason == streamed.stop_reason == "tool_use"
    for message in (plain, streamed):
        (call,) = calls_of(message)
        assert (call.name, call.input) == ("get_weather", {"city": "Paris"})
        assert call.id.startswith("toolu_")

    result = {"type": "tool_result", "tool_use_id": calls_of(plain)[0].id, "content": "sunny"}
    messages += [{"role": "assistant", "content": plain.content}, {"role": "user", "content": [result]}]
    answer = client.messages.create(model=scripted, max_tokens=96, tools=[WEATHER], messages=messages)
    assert answer.stop_reason == "end_turn"
    assert text_of(answer)


def test_two_tools_are_called_at_once(client: anthropic.Anthropic, scripted: str) -> None:
    with client.messages.stream(
        model=scripted, max_tokens=96, tools=[WEATHER], messages=[{"role": "user", "content": "the weather twice"}]
    ) as stream:
        message = stream.get_final_message()

    calls = calls_of(message)
    assert [call.input for call in calls] == [{"city": "Paris"}, {"city": "Oslo"}]
    assert len({call.id for call in calls}) == 2


def test_an_answer_has_the_form_that_was_asked_for(client: anthropic.Anthropic) -> None:
    schema: Any = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"]}
    message = client.messages.create(
        model="cria",
        max_tokens=60,
        messages=QUESTION,
        output_config={"effort": "low", "format": {"type": "json_schema", "schema": schema}},
    )

    assert text_of(message).replace(" ", "").replace("\n", "") in ('{"yes":true}', '{"yes":false}')


def test_models_are_listed_page_by_page_and_shown_one_by_one(client: anthropic.Anthropic) -> None:
    listed = [model.id for model in client.models.list(limit=1)]
    one = client.models.retrieve("cria")

    assert "cria" in listed
    assert len(listed) == len(set(listed))
    assert (one.id, one.type, one.lifecycle) == ("cria", "model", "active")
    with pytest.raises(anthropic.NotFoundError):
        client.models.retrieve("criaa/b:c")


def test_an_unknown_model_is_not_found(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.messages.create(model="criaa", max_tokens=3, messages=QUESTION)

    assert caught.value.type == "not_found_error"
    assert caught.value.request_id is not None
    assert caught.value.request_id.startswith("req_")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search_20250305"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused_with_the_reason(
    client: anthropic.Anthropic, changes: Any, said: str
) -> None:
    request: Any = {"model": "cria", "max_tokens": 3, "messages": QUESTION, **changes}
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(**request)

    assert caught.value.type == "invalid_request_error"
    assert said in caught.value.message


def test_an_image_shown_to_a_model_without_eyes_is_the_callers_mistake(client: anthropic.Anthropic) -> None:
    data = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()
    source = {"type": "base64", "media_type": "image/png", "data": data}
    messages: Any = [{"role": "user", "content": [{"type": "image", "source": source}]}]

    with pytest.raises(anthropic.BadRequestError, match="cria is not made for images"):
        client.messages.create(model="cria", max_tokens=3, messages=messages)


def test_a_prompt_that_is_too_long_is_refused_in_the_words_that_clients_look_for(client: anthropic.Anthropic) -> None:
    messages: Any = [{"role": "user", "content": "llama " * 20_000}]

    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: [0-9]+ tokens > [0-9]+ maximum"):
        client.messages.create(model="cria", max_tokens=3, messages=messages)


def text_of(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def calls_of(message: Any) -> list[Any]:
    return [block for block in message.content if block.type == "tool_use"]

"""The Responses API over chat completions: requests, whole responses, and events that clients can count by."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.golden import cut, events, golden
from llamaherd_gateway.dialects.dialect import Call, Facts, Turn
from llamaherd_gateway.dialects.openai.responses import call_count, call_response, read_response
from llamaherd_gateway.problems import BadRequest, Problem

TURN = Turn(request_id="ab" * 8, received_ns=1_700_000_000_000_000_000)
FACTS = Facts(model="scripted")
NOW_NS = 1_700_000_002_000_000_000
WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": True}


def call(**fields: Any) -> Call:
    body = json.dumps({"model": "gpt", "input": "Hello", **fields}).encode()
    return call_response(read_response(body), FACTS, TURN)


def sent(**fields: Any) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(call(**fields).body)
    return body


def refusal(**fields: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        call(**fields)
    return caught.value


def whole(file: str, **fields: Any) -> dict[str, Any]:
    response: dict[str, Any] = json.loads(call(**fields).translation.whole(golden(file), NOW_NS))
    return response


def told(stream: bytes, places: list[int] | None = None, **fields: Any) -> list[tuple[str, Any]]:
    translation = call(stream=True, **fields).translation
    out = [translation.feed(piece, NOW_NS) for piece in cut(stream, places or [])]
    assert all(not piece or piece.endswith(b"\n\n") for piece in out)
    return events(b"".join(out) + translation.end(NOW_NS))


def test_a_text_becomes_a_conversation() -> None:
    asked = call(instructions="Be brief.", max_output_tokens=9, reasoning={"effort": "low"}, top_k=3, store=True)
    body = json.loads(asked.body)
    assert asked.path == "/v1/chat/completions"
    assert body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    assert (body["max_tokens"], body["reasoning_effort"], body["top_k"]) == (9, "low", 3)
    assert not {"input", "store", "instructions", "max_output_tokens"} & body.keys()
    assert sent(stream=True)["stream_options"] == {"include_usage": True}


def test_thoughts_text_and_calls_in_a_row_are_one_turn() -> None:
    body = sent(
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "weather?"}]},
            {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "wait"}]},
            {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
            {"type": "function_call", "call_id": "c2", "name": "weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "rain"}]},
            {"type": "reasoning", "summary": [], "encrypted_content": "..."},
        ]
    )
    asked, turn, first, second = body["messages"]
    assert asked["content"] == [{"type": "text", "text": "weather?"}]
    assert (turn["role"], turn["reasoning_content"], turn["content"]) == ("assistant", "hm", "wait")
    assert [called["id"] for called in turn["tool_calls"]] == ["c1", "c2"]
    assert first == {"role": "tool", "tool_call_id": "c1", "content": "sunny"}
    assert second["content"] == [{"type": "text", "text": "rain"}]


def test_images_are_data_never_addresses() -> None:
    def picture(url: str) -> list[Any]:
        return [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]

    (message,) = sent(input=picture("data:image/png;base64,aGk="))["messages"]
    assert message["content"] == [{"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}]
    assert refusal(input=picture("https://example.org/a.png")).code == "invalid_image_url"


def test_a_schema_for_the_text_is_handed_on() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    wanted = {"type": "json_schema", "name": "n", "schema": schema, "strict": True}
    assert sent(text={"format": wanted})["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": schema, "strict": True},
    }
    assert sent(text={"format": {"type": "json_object"}})["response_format"] == {"type": "json_object"}
    assert "response_format" not in sent(text={"format": {"type": "text"}})


def test_only_functions_are_tools_and_one_may_be_forced() -> None:
    other = {"type": "function", "name": "news"}
    body = sent(tools=[WEATHER, other, {"type": "web_search"}], tool_choice={"type": "function", "name": "weather"})
    assert [tool["function"]["name"] for tool in body["tools"]] == ["weather"]
    assert body["tools"][0]["function"]["strict"] is True
    assert body["tool_choice"] == "required"
    assert "tools" not in sent(tools=[{"type": "web_search"}])


def test_probabilities_are_asked_for_and_told_without_token_numbers() -> None:
    asked = sent(include=["message.output_text.logprobs"], top_logprobs=2)
    assert (asked["logprobs"], asked["top_logprobs"]) == (True, 2)
    (message,) = whole("chat_logprobs.json", top_logprobs=1)["output"]
    first = message["content"][0]["logprobs"][0]
    assert first.keys() == {"token", "logprob", "bytes", "top_logprobs"}
    assert [top.keys() for top in first["top_logprobs"]] == [{"token", "logprob", "bytes"}]
    assert sent(include=["message.output_text.logprobs"])["top_logprobs"] == 1
    assert whole("chat_logprobs.json")["output"][0]["content"][0]["logprobs"][0]["top_logprobs"] == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": 1}, "previous_response_id"),
        ({"store": "no"}, "store"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"background": True}, "background"),
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": ["text"]}, "input[0]"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0]"),
        ({"input": [{"role": "user"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [5]}]}, "input[0]"),
        ({"input": [{"type": "function_call", "call_id": "c"}]}, "input[0]"),
        ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input[0]"),
        ({"instructions": ["x"]}, "instructions"),
        ({"top_logprobs": "2"}, "top_logprobs"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice"),
    ],
)
def test_what_cannot_be_done_is_refused_and_named(fields: dict[str, Any], param: str) -> None:
    assert refusal(**fields).param == param


def test_a_plain_answer_is_a_response() -> None:
    response = whole("chat.json", metadata={"a": "b"}, temperature=0.5)
    assert response["id"] == "resp_" + "ab" * 8
    assert (response["status"], response["model"], response["object"]) == ("completed", "gpt", "response")
    assert (response["created_at"], response["completed_at"]) == (1_700_000_000, 1_700_000_002)
    assert (response["metadata"], response["temperature"]) == ({"a": "b"}, 0.5)
    (message,) = response["output"]
    assert message["content"][0]["text"] == json.loads(golden("chat.json"))["choices"][0]["message"]["content"]
    usage, counted = response["usage"], json.loads(golden("chat.json"))["usage"]
    assert usage["input_tokens"] == counted["prompt_tokens"]
    assert usage["output_tokens"] == counted["completion_tokens"]
    assert usage["total_tokens"] == counted["total_tokens"]


def test_thoughts_and_calls_are_items_of_their_own() -> None:
    assert [item["type"] for item in whole("thinking.json")["output"]] == ["reasoning", "message"]
    first, second = whole("tool_calls.json")["output"]
    assert (first["name"], first["arguments"]) == ("get_weather", '{"city": "Paris"}')
    assert first["call_id"] != second["call_id"]
    assert first["id"] != second["id"]


def test_an_answer_cut_off_by_the_limit_is_incomplete() -> None:
    response = whole("chat_length.json")
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["output"][0]["status"] == "incomplete"
    name, last = told(golden("chat_length_stream.sse"))[-1]
    assert name == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


def test_an_answer_without_a_word_still_has_a_text() -> None:
    empty = b'{"choices":[{"index":0,"finish_reason":"stop","message":{"role":"assistant","content":""}}]}'
    (message,) = json.loads(call().translation.whole(empty, NOW_NS))["output"]
    assert message["content"][0]["text"] == ""


@pytest.mark.parametrize(
    ("stream", "plain"),
    [
        ("chat_stream_usage.sse", "chat.json"),
        ("thinking_stream.sse", "thinking.json"),
        ("tool_call_stream.sse", "tool_call.json"),
        ("tool_calls_stream.sse", "tool_calls.json"),
        ("chat_length_stream.sse", "chat_length.json"),
    ],
)
def test_a_stream_ends_with_the_response_that_a_plain_answer_is(stream: str, plain: str) -> None:
    def content(response: dict[str, Any]) -> dict[str, Any]:
        # llama-server makes up another id for each call, and counts only when asked to.
        output = [{**item, "call_id": None} for item in response["output"]]
        return {**response, "output": output, "usage": None}

    _, last = told(golden(stream))[-1]
    assert content(last["response"]) == content(whole(plain))


@settings(max_examples=25)
@given(
    st.sampled_from(["chat_stream_usage.sse", "thinking_stream.sse", "tool_calls_stream.sse"]),
    st.lists(st.integers(0, 10_000), max_size=8),
)
def test_however_a_stream_is_cut_its_events_are_the_same_and_in_order(file: str, places: list[int]) -> None:
    found = told(golden(file), places)

    assert found == told(golden(file))
    assert [content["sequence_number"] for _, content in found] == list(range(len(found)))
    assert [name for name, _ in found[:2]] == ["response.created", "response.in_progress"]
    assert all(name == content["type"] for name, content in found)
    check_items(found)


def check_items(found: list[tuple[str, Any]]) -> None:
    """Every item is added before it grows and done after; its pieces are its whole."""
    grown: dict[int, str] = {}
    done: list[Any] = []
    for name, content in found[2:-1]:
        index = content["output_index"]
        match name.removeprefix("response."):
            case "output_item.added":
                assert index == len(grown) == len(done)
                grown[index] = ""
            case "output_text.delta" | "reasoning_text.delta" | "function_call_arguments.delta":
                grown[index] += content["delta"]
            case "output_text.done" | "reasoning_text.done":
                assert content["text"] == grown[index]
                assert content["content_index"] == 0
            case "function_call_arguments.done":
                assert content["arguments"] == grown[index]
            case "output_item.done":
                done.append(content["item"])
            case other:
                assert other in ("content_part.added", "content_part.done")
    assert found[-1][1]["response"]["output"] == done


def test_an_error_in_mid_stream_fails_the_response() -> None:
    broken = golden("chat_stream.sse")[:700].rpartition(b"\n\n")[0] + b"\n\n"
    broken += b'data: {"error":{"code":500,"message":"decode failed","type":"server_error"}}\n\n'
    *_, (error, said), (failed, last) = told(broken)
    assert (error, said["message"]) == ("error", "decode failed")
    assert failed == "response.failed"
    assert last["response"]["status"] == "failed"
    assert last["response"]["output"][0]["status"] == "incomplete"


def test_a_stream_that_fails_before_its_first_event_still_begins_as_clients_expect() -> None:
    translation = call(stream=True).translation
    found = events(translation.fail(Problem(status=502, message="gone"), NOW_NS))
    assert [name for name, _ in found] == ["response.created", "response.in_progress", "error", "response.failed"]
    assert translation.fail(Problem(status=502, message="gone"), NOW_NS) == b""
    assert translation.end(NOW_NS) == b""


def test_a_stream_that_just_stops_is_a_failure() -> None:
    assert told(golden("chat_stream.sse")[:700])[-1][0] == "response.failed"


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"choices": [{}]}', b'{"choices": 5}'])
def test_an_answer_that_makes_no_sense_is_a_value_error(body: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 # the contract names the type alone
        call().translation.whole(body, NOW_NS)


def test_tokens_of_an_input_are_counted_by_llama_server() -> None:
    asked = call_count(read_response(b'{"model": "m", "input": "Hello"}'), FACTS, TURN)
    assert asked.path == "/v1/chat/completions/input_tokens"
    assert asked.translation is None

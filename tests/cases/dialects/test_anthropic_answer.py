"""Recorded answers of llama-server become messages: plain, and as events however the bytes were cut."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamaherd_gateway.dialects.anthropic.answer import AnswerTranslation, CountTranslation, Expected
from llamaherd_gateway.dialects.dialect import Turn
from llamaherd_gateway.problems import Problem

GOLDEN = Path(__file__).parents[2] / "golden" / "llama_server"
TURN = Turn(request_id="7f", received_ns=1)
SHOWN = Expected(model="claude-x", max_tokens=64, thoughts="shown")

STOPPED = (
    b'{"choices":[{"finish_reason":"stop","index":0,"message":{"role":"assistant","content":"I am a "}}],'
    b'"model":"cria","usage":{"completion_tokens":14,"prompt_tokens":17,"total_tokens":31,'
    b'"prompt_tokens_details":{"cached_tokens":16}},"id":"c","__verbose":{"stopping_word":"tiny"},'
    b'"timings":{"cache_n":16,"prompt_n":1,"predicted_n":14}}'
)
PROGRESS = (
    b'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"role":"assistant","content":null}}],'
    b'"prompt_progress":{"total":17,"cache":16,"processed":%d,"time_ms":%d}}\n\n'
)
SAID = b'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"content":"Hi"}}]}\n\n'
STOPPED_STREAM = (
    b'data: {"choices":[{"finish_reason":"stop","index":0,"delta":{}}],"__verbose":{"stopping_word":"tiny"}}\n\n'
    b'data: {"choices":[],"usage":{"completion_tokens":14,"prompt_tokens":17,"total_tokens":31,'
    b'"prompt_tokens_details":{"cached_tokens":16}}}\n\ndata: [DONE]\n\n'
)


def golden(name: str) -> bytes:
    return (GOLDEN / name).read_bytes()


def whole(body: bytes, expected: Expected = SHOWN, *, context_tokens: int = 0) -> Any:
    translation = AnswerTranslation(expected, TURN, stream=False, context_tokens=context_tokens)
    return json.loads(translation.whole(body, 2))


def translated(pieces: list[bytes], expected: Expected = SHOWN) -> bytes:
    translation = AnswerTranslation(expected, TURN, stream=True)
    return b"".join(translation.feed(piece, 2) for piece in pieces) + translation.end(3)


def events_of(stream: bytes) -> list[tuple[str, Any]]:
    """(name, data) of each; the name is the data's `type`, which Anthropic's clients rely on."""
    events = []
    for record in stream.decode().split("\n\n")[:-1]:
        name, data = record.split("\n")
        events.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    assert all(name == data["type"] for name, data in events)
    return events


def events(name: str, expected: Expected = SHOWN) -> list[tuple[str, Any]]:
    return events_of(translated([golden(name)], expected))


def assembled(events: list[tuple[str, Any]]) -> Any:
    """The message that a client puts together; fails where the order of events is not Anthropic's."""
    (first, start), *middle, (before_last, delta), (last, _) = events
    assert (first, before_last, last) == ("message_start", "message_delta", "message_stop")
    message = start["message"]
    open_index = None
    for name, event in middle:
        match name:
            case "content_block_start":
                assert open_index is None
                open_index = event["index"]
                assert open_index == len(message["content"])
                message["content"].append(event["content_block"] | {"arguments": ""})
            case "content_block_delta":
                assert event["index"] == open_index
                take_delta(message["content"][-1], event["delta"])
            case "content_block_stop":
                assert event["index"] == open_index
                open_index = None
            case _:
                assert name == "ping"
    assert open_index is None
    for block in message["content"]:
        arguments = block.pop("arguments")
        if block["type"] == "tool_use":
            assert block["input"] == {}
            block["input"] = json.loads(arguments or "{}")
    return message | delta["delta"] | {"usage": delta["usage"]}


def take_delta(block: dict[str, Any], delta: dict[str, str]) -> None:
    match delta:
        case {"type": "text_delta", "text": text}:
            block["text"] += text
        case {"type": "thinking_delta", "thinking": thinking}:
            block["thinking"] += thinking
        case {"type": "signature_delta", "signature": signature}:
            block["signature"] += signature
        case {"type": "input_json_delta", "partial_json": json_}:
            block["arguments"] += json_
        case _:
            raise AssertionError(delta)


def test_a_plain_answer_is_a_message_named_as_the_client_named_the_model() -> None:
    usage = json.loads(golden("chat.json"))["usage"]
    message = whole(golden("chat.json"))

    cached = usage["prompt_tokens_details"]["cached_tokens"]
    assert message == {
        "id": "msg_7f",
        "type": "message",
        "role": "assistant",
        "model": "claude-x",
        "content": [{"type": "text", "text": json.loads(golden("chat.json"))["choices"][0]["message"]["content"]}],
        "usage": {
            "input_tokens": usage["prompt_tokens"] - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": usage["completion_tokens"],
        },
        "stop_reason": "end_turn",
        "stop_sequence": None,
    }


def test_thoughts_stand_before_the_text_with_a_signature() -> None:
    assert whole(golden("thinking.json"))["content"] == [
        {"type": "thinking", "thinking": "Two and two are four.\n", "signature": ""},
        {"type": "text", "text": "It is 4."},
    ]


def test_thoughts_are_left_out_or_emptied_where_the_client_wants_that() -> None:
    hidden = Expected(model="m", thoughts="hidden")
    omitted = Expected(model="m", thoughts="omitted")

    assert [block["type"] for block in whole(golden("thinking.json"), hidden)["content"]] == ["text"]
    assert [block["type"] for block in assembled(events("thinking_stream.sse", hidden))["content"]] == ["text"]
    for message in (whole(golden("thinking.json"), omitted), assembled(events("thinking_stream.sse", omitted))):
        assert [block["type"] for block in message["content"]] == ["thinking", "text"]
        assert message["content"][0]["thinking"] == ""


def test_tool_calls_become_blocks_with_an_object_for_input() -> None:
    message = whole(golden("tool_calls.json"))

    assert message["stop_reason"] == "tool_use"
    assert [(block["type"], block["name"], block["input"]) for block in message["content"]] == [
        ("tool_use", "get_weather", {"city": "Paris"}),
        ("tool_use", "get_weather", {"city": "Oslo"}),
    ]
    calls = json.loads(golden("tool_calls.json"))["choices"][0]["message"]["tool_calls"]
    assert [block["id"] for block in message["content"]] == ["toolu_" + call["id"] for call in calls]


@pytest.mark.parametrize(
    ("stream", "content", "stop_reason"),
    [
        ("chat_stream_usage.sse", ["text"], "end_turn"),
        ("chat_length_stream.sse", ["text"], "max_tokens"),
        ("chat_progress_stream.sse", ["text"], "max_tokens"),
        ("thinking_stream.sse", ["thinking", "text"], "end_turn"),
        ("tool_call_stream_usage.sse", ["tool_use"], "tool_use"),
        ("tool_calls_stream.sse", ["tool_use", "tool_use"], "tool_use"),
    ],
)
def test_a_streams_events_come_in_anthropics_order(stream: str, content: list[str], stop_reason: str) -> None:
    message = assembled(events(stream))

    assert [block["type"] for block in message["content"]] == content
    assert (message["stop_reason"], message["model"]) == (stop_reason, "claude-x")


def test_a_stream_says_what_the_plain_answer_says() -> None:
    for plain, stream in (
        ("thinking.json", "thinking_stream.sse"),
        ("tool_call.json", "tool_call_stream_usage.sse"),
        ("tool_calls.json", "tool_calls_stream.sse"),
    ):
        expected, message = whole(golden(plain)), assembled(events(stream))
        for block in (*expected["content"], *message["content"]):
            block.pop("id", None)
        assert message["content"] == expected["content"]


def test_usage_is_told_at_the_start_from_progress_and_at_the_end_in_whole() -> None:
    (_, start), *_, (_, delta), _ = events_of(translated([PROGRESS % (16, 0), SAID, STOPPED_STREAM]))

    counted = {"input_tokens": 1, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 16}
    assert start["message"]["usage"] == counted | {"output_tokens": 0}
    assert delta["usage"] == counted | {"output_tokens": 14}


def test_nothing_is_said_while_a_prompt_is_read_unless_that_takes_long() -> None:
    translation = AnswerTranslation(SHOWN, TURN, stream=True)

    assert translation.feed(PROGRESS % (16, 0) + PROGRESS % (16, 14_999) + b":\n\n", 2) == b""
    names = [name for name, _ in events_of(translation.feed(PROGRESS % (16, 31_000) + PROGRESS % (17, 31_200), 2))]
    assert names == ["message_start", "ping"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [({"tiny", "x"}, ("stop_sequence", "tiny")), ({"x"}, ("end_turn", None)), (set(), ("end_turn", None))],
)
def test_a_stop_sequence_is_named_when_it_was_the_clients(asked: set[str], said: tuple[str, str | None]) -> None:
    expected = Expected(model="m", max_tokens=99, stop_sequences=frozenset(asked))
    streamed = assembled(events_of(translated([SAID, STOPPED_STREAM], expected)))

    for message in (whole(STOPPED, expected), streamed):
        assert (message["stop_reason"], message["stop_sequence"]) == said


def test_a_full_context_is_not_taken_for_max_tokens() -> None:
    choices = b'"choices":[{"finish_reason":"length","message":{"content":"a"}}]'
    body = b"{" + choices + b',"usage":{"prompt_tokens":40,"completion_tokens":%d}}'

    assert whole(body % 24, context_tokens=64)["stop_reason"] == "model_context_window_exceeded"
    assert whole(body % 24, context_tokens=4096)["stop_reason"] == "max_tokens"
    assert whole(body % 64, context_tokens=64)["stop_reason"] == "max_tokens"


def test_what_the_client_put_into_the_models_mouth_is_not_repeated() -> None:
    assert whole(STOPPED, Expected(model="m", spoken="I am"))["content"] == [{"type": "text", "text": " a "}]


def test_arguments_that_were_cut_off_leave_an_empty_input() -> None:
    call = {"id": "1", "function": {"name": "f", "arguments": '{"a": [1,'}}
    body = {"choices": [{"finish_reason": "length", "message": {"content": "", "tool_calls": [call]}}]}

    (block,) = whole(json.dumps(body).encode())["content"]
    assert block == {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}}


@pytest.mark.parametrize("body", [b"", b"nope", b"{}", b"[1]", b'{"choices":[]}', b'{"choices":[{"index":0}]}'])
def test_an_answer_that_makes_no_sense_is_a_value_error(body: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 # the contract names the type alone
        whole(body)


def test_an_error_in_a_stream_ends_it_with_an_error_event_and_nothing_else() -> None:
    error = b'data: {"error":{"code":500,"message":"out of memory","type":"server_error"}}\n\n'
    *_, (name, event) = events_of(translated([SAID, error, SAID, STOPPED_STREAM]))

    assert name == "error"
    assert event["error"] == {"type": "api_error", "message": "out of memory"}
    assert event["request_id"] == "req_7f"


def test_a_stream_that_broke_off_ends_with_an_error_event() -> None:
    assert events_of(translated([SAID]))[-1][1]["error"]["type"] == "api_error"
    assert events_of(translated([SAID, b"data: {nonsense}\n\n"]))[-1][0] == "error"

    translation = AnswerTranslation(SHOWN, TURN, stream=True)
    translation.feed(SAID, 2)
    ((_, event),) = events_of(translation.fail(Problem(status=503, message="gone"), 3))
    assert event["error"] == {"type": "overloaded_error", "message": "gone"}
    assert translation.end(4) == b""


def test_tokens_are_counted_by_llama_server() -> None:
    counted = json.loads(CountTranslation().whole(golden("chat_input_tokens.json"), 2))

    assert counted == {"input_tokens": json.loads(golden("chat_input_tokens.json"))["input_tokens"]}


@settings(max_examples=30)
@given(
    name=st.sampled_from(["thinking_stream.sse", "tool_call_stream_usage.sse", "chat_progress_stream.sse"]),
    places=st.lists(st.integers(0, 10_000), max_size=12),
)
def test_any_cut_of_the_bytes_gives_the_same_events(name: str, places: list[int]) -> None:
    data = golden(name)
    ends = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]

    pieces = [data[start:end] for start, end in pairwise(ends)]
    assert translated(pieces) == translated([data])

"""llama-server's real answers (tests/golden/llama_server/) become Ollama's records."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamaherd_gateway.dialects.dialect import Facts, Translation, Turn
from llamaherd_gateway.dialects.ollama import ROUTES
from llamaherd_gateway.problems import Problem

GOLDEN = Path(__file__).parents[2] / "golden" / "llama_server"
CHAT_STREAMS = ("chat_stream", "chat_stream_usage", "chat_length_stream", "chat_logprobs_stream", "thinking_stream")
CHAT_STREAMS += ("tool_call_stream", "tool_call_stream_usage", "tool_calls_stream")
TEXT_STREAMS = ("completion_stream", "completion_probabilities_stream", "infill_stream")
TURN = Turn(request_id="ab", received_ns=1_000, load_ns=7)
NOW_NS = 1_700_000_000_123_456_789
FACTS = Facts(model="own", capabilities=frozenset({"completion", "tools", "thinking", "insert"}))
DURATIONS = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")


def recorded(name: str) -> bytes:
    return (GOLDEN / name).read_bytes()


def translation(path: str, **fields: Any) -> Translation:
    """That of a request."""
    route = next(route for route in ROUTES if route.path == path)
    assert route.call is not None
    asked = route.read(json.dumps({"model": "M:latest", **fields}).encode(), ())
    made: Translation = route.call(asked, FACTS, TURN).translation
    return made


def chat(**fields: Any) -> Translation:
    return translation("/api/chat", messages=[{"role": "user", "content": "Hi"}], **fields)


def generate(**fields: Any) -> Translation:
    return translation("/api/generate", **{"prompt": "Hi", **fields})


def translate(made: Translation, data: bytes) -> list[dict[str, Any]]:
    """The records of a stream; each line is one."""
    text = made.feed(data, NOW_NS) + made.end(NOW_NS)
    assert text.endswith(b"\n")
    return [json.loads(line) for line in text[:-1].split(b"\n")]


def plain(made: Translation, name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(made.whole(recorded(name), NOW_NS))
    return record


def expected_text(name: str) -> str:
    """What the recorded stream says, read without our code."""
    events = [json.loads(line[6:]) for line in recorded(name).decode().splitlines() if line.startswith("data: {")]
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)


def test_a_streamed_chat_is_one_record_a_line_and_the_last_tells_how_it_went() -> None:
    records = translate(chat(), recorded("chat_stream.sse"))

    assert "".join(record["message"]["content"] for record in records) == expected_text("chat_stream.sse")
    assert {record["model"] for record in records} == {"M:latest"}
    assert {record["created_at"] for record in records} == {"2023-11-14T22:13:20.123456789Z"}
    assert [record["done"] for record in records] == [False] * (len(records) - 1) + [True]
    assert all(record.keys() == {"model", "created_at", "message", "done"} for record in records[:-1])
    last = records[-1]
    assert last["message"] == {"role": "assistant", "content": ""}
    assert last["done_reason"] == "stop"
    assert last["total_duration"] == NOW_NS - 1_000
    assert last["load_duration"] == 7
    timings = json.loads(recorded("chat_stream.sse").split(b"data: ")[-2])["timings"]
    assert last["prompt_eval_count"] == timings["prompt_n"] + timings["cache_n"]
    assert last["eval_count"] == timings["predicted_n"]
    assert last["eval_duration"] == round(timings["predicted_ms"] * 1e6)


def test_usage_in_a_chunk_of_its_own_makes_no_difference() -> None:
    def shape(name: str) -> list[Any]:
        return [(record["message"], record.get("eval_count")) for record in translate(chat(), recorded(name))]

    assert shape("chat_stream.sse") == shape("chat_stream_usage.sse")


def test_a_plain_chat_is_one_object() -> None:
    made = chat(stream=False)
    record = plain(made, "chat.json")

    assert made.content_type == b"application/json; charset=utf-8"
    assert record["message"]["content"] == json.loads(recorded("chat.json"))["choices"][0]["message"]["content"]
    assert (record["done"], record["done_reason"]) == (True, "stop")
    assert chat().content_type == b"application/x-ndjson"


def test_running_into_the_limit_is_told() -> None:
    assert translate(chat(), recorded("chat_length_stream.sse"))[-1]["done_reason"] == "length"
    assert plain(chat(stream=False), "chat_length.json")["done_reason"] == "length"
    assert plain(generate(raw=True, stream=False), "completion.json")["done_reason"] == "length"
    assert plain(generate(raw=True, stream=False), "completion_stop.json")["done_reason"] == "stop"


def test_tool_calls_come_whole_with_objects_for_arguments() -> None:
    calls = [record["message"].get("tool_calls") for record in translate(chat(), recorded("tool_calls_stream.sse"))]

    assert calls[-1] is None
    first, second = calls[-2]
    assert first["function"] == {"index": 0, "name": "get_weather", "arguments": {"city": "Paris"}}
    assert second["function"] == {"index": 1, "name": "get_weather", "arguments": {"city": "Oslo"}}
    assert first["id"] != second["id"]
    streamed = [call["function"] for call in calls[-2]]
    assert [
        call["function"] for call in plain(chat(stream=False), "tool_calls.json")["message"]["tool_calls"]
    ] == streamed


def test_arguments_that_are_no_object_end_the_stream_with_an_error() -> None:
    call = {"index": 0, "function": {"name": "f", "arguments": '{"a": '}}
    events = [{"choices": [{"delta": {"tool_calls": [call]}}]}, {"choices": [{"delta": {}, "finish_reason": "length"}]}]
    data = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + b"data: [DONE]\n\n"

    assert translate(chat(), data) == [{"error": "the model called the tool 'f' with arguments that are no object"}]


def test_thoughts_are_told_from_the_answer() -> None:
    message = json.loads(recorded("thinking.json"))["choices"][0]["message"]

    records = translate(chat(), recorded("thinking_stream.sse"))
    generated = translate(generate(), recorded("thinking_stream.sse"))

    assert "".join(record["message"].get("thinking", "") for record in records) == message["reasoning_content"]
    assert "".join(record["message"]["content"] for record in records) == message["content"]
    assert "".join(record.get("thinking", "") for record in generated) == message["reasoning_content"]
    assert "".join(record["response"] for record in generated) == message["content"]
    assert plain(chat(stream=False), "thinking.json")["message"]["thinking"] == message["reasoning_content"]
    assert plain(generate(stream=False), "thinking.json")["thinking"] == message["reasoning_content"]


def test_probabilities_come_without_ids_and_alternatives_only_when_wanted() -> None:
    bare = translate(chat(logprobs=True), recorded("chat_logprobs_stream.sse"))[0]["logprobs"][0]
    full = translate(chat(logprobs=True, top_logprobs=2), recorded("chat_logprobs_stream.sse"))[0]["logprobs"][0]
    text = plain(generate(raw=True, logprobs=True, top_logprobs=2, stream=False), "completion_probabilities.json")

    assert bare.keys() == {"token", "logprob", "bytes"}
    assert bytes(bare["bytes"]).decode() == bare["token"]
    assert [likely.keys() for likely in full["top_logprobs"]] == [bare.keys()] * 2
    assert len(text["logprobs"]) == 2
    assert len(text["logprobs"][0]["top_logprobs"]) == 2
    assert "logprobs" not in translate(chat(), recorded("chat_logprobs_stream.sse"))[0]


def test_a_token_without_probability_has_a_number_all_the_same() -> None:
    event = {"choices": [{"delta": {"content": "a"}, "logprobs": {"content": [{"token": "a", "logprob": None}]}}]}
    record = translate(chat(logprobs=True), b"data: " + json.dumps(event).encode() + b"\n\n")[0]
    assert record["logprobs"] == [{"token": "a", "logprob": -9999.0}]


@pytest.mark.parametrize("stream", [True, False])
def test_a_generation_remembers_the_conversation_in_its_context(stream: bool) -> None:
    def answer(**fields: Any) -> dict[str, Any]:
        made = generate(stream=stream, **fields)
        return translate(made, recorded("chat_stream.sse"))[-1] if stream else plain(made, "chat.json")

    first = answer(system="Be kind.")
    route = next(route for route in ROUTES if route.path == "/api/generate")
    body = {"model": "M", "prompt": "And?", "system": "Be brief.", "context": first["context"]}
    messages = route.read(json.dumps(body).encode(), ()).content.messages

    said = json.loads(recorded("chat.json"))["choices"][0]["message"]["content"]
    assert [(message["role"], message["content"]) for message in messages] == [
        ("system", "Be brief."),
        ("user", "Hi"),
        ("assistant", said),
        ("user", "And?"),
    ]
    assert all(0 <= number < 2**31 for number in first["context"])


def test_raw_texts_and_fillings_have_no_context() -> None:
    assert "context" not in translate(generate(raw=True), recorded("completion_stream.sse"))[-1]
    filling = translate(generate(suffix="b"), recorded("infill_stream.sse"))
    assert "".join(record["response"] for record in filling) == json.loads(recorded("infill.json"))["content"]
    assert "context" not in filling[-1]
    assert filling[-1]["prompt_eval_count"] > 0


def test_an_error_of_llama_server_ends_the_stream() -> None:
    error = b'data: {"error":{"code":500,"message":"it broke","type":"server_error"}}\n\n'
    after = b'data: {"choices":[{"delta":{"content":"more"}}]}\n\ndata: [DONE]\n\n'
    assert translate(chat(), error + after) == [{"error": "it broke"}]
    assert translate(generate(raw=True), error) == [{"error": "it broke"}]
    assert translate(chat(), b"data: <html>\n\n") == [{"error": "llama-server sent an event that makes no sense"}]


def test_a_stream_that_cannot_go_on_says_why_and_nothing_after() -> None:
    made = chat()
    made.feed(b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n', NOW_NS)

    assert made.fail(Problem(status=502, message="it is gone"), NOW_NS) == b'{"error":"it is gone"}\n'
    assert made.end(NOW_NS) == b""


@pytest.mark.parametrize("body", [b"", b"[]", b"<html>", b'{"choices": 5}', b'{"error": {"message": "no"}}'])
def test_a_plain_answer_that_makes_no_sense_is_an_error(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        chat(stream=False).whole(body, NOW_NS)


def test_pings_are_swallowed() -> None:
    assert chat().feed(b":\n\n:\n\n", NOW_NS) == b""


@pytest.mark.parametrize("action", ["load", "unload"])
def test_loading_and_unloading_are_answered_like_an_empty_answer(action: str) -> None:
    body = {"model": "M:latest", **({"keep_alive": 0} if action == "unload" else {})}
    for route in ROUTES[:2]:
        assert route.settle is not None
        record = json.loads(route.settle(route.read(json.dumps(body).encode(), ()), TURN))
        assert (record["model"], record["done"], record["done_reason"]) == ("M:latest", True, action)
        assert record.get("message", {"content": record.get("response")})["content"] == ""


@settings(max_examples=25)
@given(data=st.data())
def test_any_split_of_a_stream_gives_the_same_lines(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(CHAT_STREAMS + TEXT_STREAMS))
    stream = recorded(f"{name}.sse")
    if data.draw(st.booleans()):
        stream = stream.replace(b"\n", b"\r\n")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))

    def made() -> Translation:
        fields = {"logprobs": True, "top_logprobs": 2}
        return generate(raw=True, **fields) if name in TEXT_STREAMS else chat(**fields)

    parts = [stream[start:end] for start, end in pairwise([0, *cuts, len(stream)])]
    split = made()
    sent = [*(split.feed(part, NOW_NS) for part in parts), split.end(NOW_NS)]
    whole = made()

    assert b"".join(sent) == whole.feed(stream, NOW_NS) + whole.end(NOW_NS)
    assert all(part == b"" or part.endswith(b"\n") for part in sent)
    lines = b"".join(sent).removesuffix(b"\n").split(b"\n")
    assert b"" not in lines
    last = [json.loads(line) for line in lines][-1]
    assert last["done"]
    assert all(isinstance(last[duration], int) for duration in DURATIONS)

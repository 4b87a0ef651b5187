"""Conversations that are gone on with by the id of an answer: OpenAI's responses and LM Studio's chat."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.golden import cut, events, golden
from llamaherd_gateway.dialects.dialect import Asked, Call, Facts, Turn
from llamaherd_gateway.dialects.lmstudio import chat as lmstudio
from llamaherd_gateway.dialects.openai import kept_responses, responses
from llamaherd_gateway.dialects.openai.response_frame import render_response
from llamaherd_gateway.problems import BadRequest, Problem
from llamaherd_shared.events import decode_event, encode_event
from llamaherd_shared.events.turn import TurnKept

FACTS = Facts(model="scripted")
ASKED_NS, NOW_NS = 1_700_000_000_000_000_000, 1_700_000_002_000_000_000
FIRST, SECOND, THIRD = ("a1" * 8, "b2" * 8, "c3" * 8)
CALLED = [
    {"role": "user", "content": "weather?"},
    {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
    {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
]


def turn_of(request_id: str) -> Turn:
    return Turn(request_id=request_id, received_ns=ASKED_NS)


def read(**fields: Any) -> Asked:
    return responses.read_response(json.dumps({"model": "gpt", "input": "Hello", **fields}).encode())


def body_of(call: Call) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(call.body)
    return body


def kept(file: str = "chat.json", *, request_id: str = FIRST, **fields: Any) -> TurnKept:
    """What is kept of a plain answer, as it comes back from the bus."""
    call = responses.call_response(read(**fields), FACTS, turn_of(request_id))
    return stored(call.keeper.turn(golden(file), NOW_NS))


def stored(turn: TurnKept | None) -> TurnKept:
    assert turn is not None
    again = decode_event(encode_event(turn))
    assert isinstance(again, TurnKept)
    return again


def chain() -> list[TurnKept]:
    """Three turns: a text, a text, and a call with its result."""
    first = kept(request_id=FIRST)
    second = kept("tool_calls.json", request_id=SECOND, previous_response_id=first.response, input="weather?")
    calls = [item for item in second.output if item["type"] == "function_call"]
    results = [{"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"} for call in calls]
    return [first, second, kept(request_id=THIRD, previous_response_id=second.response, input=results)]


# How OpenAI's requests go on.


def test_a_request_that_goes_on_asks_what_one_with_the_whole_conversation_asks() -> None:
    turns = chain()
    asked = read(previous_response_id=turns[-1].response, input="And now?", temperature=0.5)

    resumed = responses.resume(asked, turns)

    items = [*kept_responses.items_of(turns), {"role": "user", "content": "And now?"}]
    assert json.loads(resumed.body) == json.loads(read(input=items, temperature=0.5).body)
    said = [message["role"] for message in json.loads(resumed.body)["messages"]]
    assert said == ["user", "assistant", "user", "assistant", "tool", "tool", "assistant", "user"]


def test_what_was_instructed_before_holds_no_longer() -> None:
    first = kept(instructions="Talk like a pirate.")

    def systems(**fields: Any) -> list[Any]:
        messages = json.loads(responses.resume(read(**fields), [first]).body)["messages"]
        return [message["content"] for message in messages if message["role"] == "system"]

    assert systems() == []
    assert systems(instructions="Be brief.") == ["Be brief."]
    assert render_response(first)["instructions"] == "Talk like a pirate."


def test_a_turn_is_kept_alone_and_names_the_one_before() -> None:
    first, second, third = chain()
    assert [turn.previous for turn in (first, second, third)] == ["", first.response, second.response]
    assert [len(turn.input) for turn in (first, second, third)] == [1, 1, 2]


@pytest.mark.parametrize("fields", [{}, {"store": True}, {"store": None}])
def test_an_answer_is_kept_unless_the_request_says_otherwise(fields: dict[str, Any]) -> None:
    assert read(**fields).keep
    assert not read(store=False).keep
    assert responses.call_response(read(store=False), FACTS, turn_of(FIRST)).keeper is None


def test_where_nothing_is_kept_the_answer_says_so() -> None:
    call = responses.call_response(read(store=False), FACTS, turn_of(FIRST))
    assert json.loads(call.translation.whole(golden("chat.json"), NOW_NS))["store"] is False


ITEMS = st.lists(st.sampled_from([*CALLED, {"role": "assistant", "content": "Hi"}]), min_size=1, max_size=5)


@settings(max_examples=30)
@given(st.lists(st.tuples(ITEMS, ITEMS), max_size=4), ITEMS)
def test_however_a_conversation_is_cut_into_turns_the_model_is_asked_the_same(
    turns: list[tuple[list[Any], list[Any]]], last: list[Any]
) -> None:
    before = [
        TurnKept(response=f"resp_{n}", at_ns=1, asked_ns=1, model="m", input=said, output=answered, usage={})
        for n, (said, answered) in enumerate(turns)
    ]
    whole = read(input=[item for said, answered in turns for item in (*said, *answered)] + last)

    assert responses.resume(read(input=last), before).body == whole.body
    assert responses.resume(read(input=last), before).text == whole.text


# How OpenAI's answers are kept.


@pytest.mark.parametrize("file", ["chat.json", "chat_length.json", "thinking.json", "tool_calls.json"])
def test_a_response_is_shown_later_as_it_was_told(file: str) -> None:
    call = responses.call_response(read(metadata={"a": "b"}, top_p=0.9), FACTS, turn_of(FIRST))

    turn = stored(call.keeper.turn(golden(file), NOW_NS))
    told = json.loads(call.translation.whole(golden(file), NOW_NS))

    assert told["store"] is True
    assert json.loads(kept_responses.show_response(turn, {})) == told


STREAMS = ["chat_stream_usage.sse", "thinking_stream.sse", "tool_calls_stream.sse", "chat_length_stream.sse"]


@pytest.mark.parametrize("file", STREAMS)
def test_a_stream_is_kept_before_its_end_is_told_and_told_as_without(file: str) -> None:
    def told(*, keep: bool) -> list[tuple[str, Any]]:
        call = responses.call_response(read(stream=True), FACTS, turn_of(FIRST))
        out = [call.translation.feed(piece, NOW_NS) for piece in cut(golden(file), [50, 900])]
        if keep:
            turn = stored(call.keeper.turn(b"", NOW_NS))
            out.append(call.translation.end(NOW_NS))
            assert render_response(turn) == events(b"".join(out))[-1][1]["response"]
        else:
            out.append(call.translation.end(NOW_NS))
        return events(b"".join(out))

    assert told(keep=True) == told(keep=False)
    assert [content["sequence_number"] for _, content in told(keep=True)] == list(range(len(told(keep=True))))


def test_an_answer_that_could_not_be_kept_says_so() -> None:
    plain = responses.call_response(read(), FACTS, turn_of(FIRST))
    plain.keeper.turn(golden("chat.json"), NOW_NS)
    plain.keeper.not_kept()
    assert json.loads(plain.translation.whole(golden("chat.json"), NOW_NS))["store"] is False

    stream = responses.call_response(read(stream=True), FACTS, turn_of(FIRST))
    begun = events(stream.translation.feed(golden("chat_stream_usage.sse"), NOW_NS))
    stream.keeper.turn(b"", NOW_NS)
    stream.keeper.not_kept()
    ended = events(stream.translation.end(NOW_NS))
    assert (begun[0][1]["response"]["store"], ended[-1][1]["response"]["store"]) == (True, False)


def test_a_stream_that_fails_is_not_kept() -> None:
    call = responses.call_response(read(stream=True), FACTS, turn_of(FIRST))
    call.translation.feed(golden("chat_stream.sse")[:700], NOW_NS)
    assert call.keeper.turn(b"", NOW_NS) is None
    assert events(call.translation.end(NOW_NS))[-1][1]["response"]["store"] is False


def test_a_stream_that_fails_while_it_is_being_kept_is_told_to_its_end() -> None:
    call = responses.call_response(read(stream=True), FACTS, turn_of(FIRST))
    out = call.translation.feed(golden("chat_stream_usage.sse"), NOW_NS)
    call.keeper.turn(b"", NOW_NS)
    found = events(out + call.translation.fail(Problem(status=503, message="stopped"), NOW_NS))
    assert [content["sequence_number"] for _, content in found] == list(range(len(found)))
    assert found[-1][0] == "response.failed"


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"choices": [{}]}'])
def test_an_answer_that_makes_no_sense_is_not_kept(body: bytes) -> None:
    call = responses.call_response(read(), FACTS, turn_of(FIRST))
    with pytest.raises(ValueError):  # noqa: PT011 # the contract names the type alone
        call.keeper.turn(body, NOW_NS)


# What clients are shown.


def listed(turns: Sequence[TurnKept], **query: str) -> dict[str, Any]:
    page: dict[str, Any] = json.loads(kept_responses.list_input(turns, query))
    return page


def test_input_is_listed_newest_first_with_all_turns_before() -> None:
    turns = chain()
    page = listed(turns)
    kinds = [item["type"] for item in page["data"]]
    assert kinds == ["function_call_output"] * 2 + ["function_call"] * 2 + ["message"] * 3
    assert (page["object"], page["has_more"]) == ("list", False)
    assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
    assert page["data"][-1] == {
        "id": f"msg_{FIRST}i0",
        "type": "message",
        "role": "user",
        "status": "completed",
        "content": [{"type": "input_text", "text": "Hello"}],
    }
    assert len({item["id"] for item in page["data"]}) == len(page["data"])


def test_pages_of_input_follow_each_other() -> None:
    turns = chain()
    whole = [item["id"] for item in listed(turns, order="asc")["data"]]
    assert whole == [item["id"] for item in listed(turns)["data"]][::-1]

    found: list[str] = []
    while True:
        page = listed(turns, order="asc", limit="3", **({"after": found[-1]} if found else {}))
        found += [item["id"] for item in page["data"]]
        if not page["has_more"]:
            break
    assert found == whole
    rest = listed(turns, order="asc", after=whole[-1])
    assert (rest["data"], rest["first_id"], rest["has_more"]) == ([], None, False)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "101"}, "limit"),
        ({"limit": "9" * 5000}, "limit"),
        ({"limit": "x"}, "limit"),
        ({"order": "up"}, "order"),
        ({"after": "msg_none"}, "after"),
    ],
)
def test_a_page_that_cannot_be_is_refused(query: dict[str, str], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        kept_responses.list_input(chain(), query)
    assert caught.value.param == param


def test_only_whole_responses_are_shown() -> None:
    turn = kept()
    assert kept_responses.show_response(turn, {"stream": "false"}) == kept_responses.show_response(turn, {})
    with pytest.raises(BadRequest, match="background"):
        kept_responses.show_response(turn, {"stream": "true"})


def test_an_id_of_any_length_makes_a_short_refusal() -> None:
    for refuse in (kept_responses.previous_missing, kept_responses.response_missing):
        assert len(refuse("x" * 10_000).message) < 256


# LM Studio's chat.


def chat(**fields: Any) -> Asked:
    return lmstudio.read_chat(json.dumps({"model": "m", "input": "Hi", **fields}).encode())


def chatted(**fields: Any) -> TurnKept:
    call = lmstudio.call_chat(chat(**fields), FACTS, turn_of(FIRST))
    return stored(call.keeper.turn(golden("chat.json"), NOW_NS))


def messages(asked: Asked) -> list[Any]:
    found: list[Any] = body_of(lmstudio.call_chat(asked, FACTS, turn_of(SECOND)))["messages"]
    return found


def test_lm_studios_transcript_stands_before_what_is_said_next() -> None:
    picture = "data:image/png;base64,AAAA"
    first = chatted(input=[{"type": "text", "content": "What is this?"}, {"type": "image", "data_url": picture}])

    said, answered, asked = messages(lmstudio.resume(chat(input="Sure?"), [first]))

    assert [part["type"] for part in said["content"]] == ["text", "image_url"]
    assert answered["role"] == "assistant"
    content = json.loads(golden("chat.json"))["choices"][0]["message"]["content"]
    assert answered["content"] == content
    assert asked == {"role": "user", "content": "Sure?"}


def test_lm_studios_system_prompt_holds_until_another_one_is_given_and_stands_first() -> None:
    first, second = chatted(system_prompt="Be brief."), chatted()
    kept_on = messages(lmstudio.resume(chat(), [first, second]))
    replaced = messages(lmstudio.resume(chat(system_prompt="Be long."), [first, second]))
    assert [message["role"] for message in kept_on].index("system") == 0
    assert [message["content"] for message in kept_on if message["role"] == "system"] == ["Be brief."]
    assert [message["content"] for message in replaced if message["role"] == "system"] == ["Be long."]


def test_lm_studios_answer_tells_its_id_only_when_it_was_kept() -> None:
    def result(*, keep: bool, **fields: Any) -> dict[str, Any]:
        call = lmstudio.call_chat(chat(**fields), FACTS, turn_of(FIRST))
        if call.keeper is not None:
            call.keeper.turn(golden("chat.json"), NOW_NS)
            if not keep:
                call.keeper.not_kept()
        content: dict[str, Any] = json.loads(call.translation.whole(golden("chat.json"), NOW_NS))
        return content

    assert result(keep=True)["response_id"] == f"resp_{FIRST}"
    assert "response_id" not in result(keep=False)
    assert "response_id" not in result(keep=True, store=False)


@pytest.mark.parametrize("file", ["chat_progress_stream.sse", "thinking_stream.sse", "chat_length_stream.sse"])
def test_lm_studios_stream_is_kept_before_its_end(file: str) -> None:
    call = lmstudio.call_chat(chat(stream=True), FACTS, turn_of(FIRST))
    call.translation.feed(golden(file), NOW_NS)

    turn = stored(call.keeper.turn(b"", NOW_NS))
    result = events(call.translation.end(NOW_NS))[-1][1]["result"]

    assert result["response_id"] == turn.response
    assert turn.cut == (b'"finish_reason":"length"' in golden(file))
    assert turn.usage["output_tokens"] == result["stats"]["total_output_tokens"]
    texts = [part["text"] for item in turn.output for part in item["content"]]
    assert texts == [part["content"] for part in result["output"]]


@pytest.mark.parametrize(
    "stream",
    [
        golden("chat_stream.sse")[:700],
        golden("chat_stream.sse") + b'data: {"error":{"code":500,"message":"x"}}\n\n',
    ],
)
def test_lm_studios_stream_that_went_wrong_is_not_kept(stream: bytes) -> None:
    call = lmstudio.call_chat(chat(stream=True), FACTS, turn_of(FIRST))
    call.translation.feed(stream, NOW_NS)
    assert call.keeper.turn(b"", NOW_NS) is None
    assert "response_id" not in events(call.translation.end(NOW_NS))[-1][1]["result"]


def test_what_lm_studio_kept_is_a_response_too() -> None:
    shown = json.loads(kept_responses.show_response(chatted(), {}))
    assert (shown["object"], shown["status"], shown["output"][0]["type"]) == ("response", "completed", "message")
    (item,) = listed([chatted()])["data"]
    assert item["content"] == [{"type": "input_text", "text": "Hi"}]


@pytest.mark.parametrize("memory", [responses.MEMORY, lmstudio.MEMORY])
def test_without_a_memory_clients_are_told_what_to_do(memory: Any) -> None:
    assert "the whole conversation" in memory.off().message
    assert "gateway.conversations" in memory.off().message
    assert memory.missing("resp_1").code == "previous_response_not_found"

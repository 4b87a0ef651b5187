"""Chat completions pass through; what llama-server would get wrong is mended."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.golden import cut, events, golden
from llamaherd_gateway.dialects.dialect import Call, Facts, Turn
from llamaherd_gateway.dialects.openai import ROUTES, Renamed
from llamaherd_gateway.dialects.openai.chat import call_chat, read_chat
from llamaherd_gateway.dialects.openai.function_calls import FunctionCalls
from llamaherd_gateway.problems import BadRequest, Problem

FACTS = Facts(model="scripted", slots=2)
TURN = Turn(request_id="ab" * 8, received_ns=1_700_000_000_000_000_000)
HELLO = [{"role": "user", "content": "Hello"}]
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
NEWS = {"type": "function", "function": {"name": "news"}}


def call(**fields: Any) -> Call:
    body = json.dumps({"model": "scripted", "messages": HELLO, **fields}).encode()
    return call_chat(read_chat(body), FACTS, TURN)


def sent(**fields: Any) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(call(**fields).body)
    return answer


def refusal(**fields: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        call(**fields)
    return caught.value


def image(url: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": url}]}]


def test_a_request_without_fault_is_passed_on_byte_for_byte() -> None:
    body = b'{ "model":"scripted","messages":[{"role":"user","content":"http://x"}],"stop":["a"],"x":1.50, "n":2}'
    passed = call_chat(read_chat(body), FACTS, TURN)
    assert passed.body is body
    assert passed.translation is None


def test_a_conversation_without_messages_is_refused_in_openais_words() -> None:
    assert refusal(messages=[]).code == "empty_array"
    assert refusal(messages=None).code == "missing_required_parameter"
    assert refusal(messages="Hello").code == "invalid_type"


def test_a_named_function_becomes_the_only_tool_and_required() -> None:
    body = sent(tools=[WEATHER, NEWS], tool_choice={"type": "function", "function": {"name": "news"}})
    assert body["tools"] == [NEWS]
    assert body["tool_choice"] == "required"


def test_allowed_tools_leave_the_others_out() -> None:
    allowed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "weather"}}]}
    body = sent(tools=[WEATHER, NEWS], tool_choice={"type": "allowed_tools", "allowed_tools": allowed})
    assert (body["tools"], body["tool_choice"]) == ([WEATHER], "auto")


def test_a_choice_of_nothing_that_is_there_is_refused() -> None:
    absent = {"type": "function", "function": {"name": "stocks"}}
    assert "'stocks'" in refusal(tools=[WEATHER], tool_choice=absent).message
    assert refusal(tool_choice=absent).param == "tool_choice"
    assert refusal(tools=[WEATHER], tool_choice={"type": "allowed_tools", "allowed_tools": {}}).param == "tool_choice"
    assert "'custom'" in refusal(tools=[WEATHER], tool_choice={"type": "custom", "custom": {}}).message


def test_words_of_tool_choice_stay() -> None:
    assert sent(tools=[WEATHER], tool_choice="none")["tool_choice"] == "none"


@pytest.mark.parametrize(
    ("stop", "kept"), [("", None), (["", "a", ""], ["a"]), ([""], None), (["a"], ["a"]), ("a", "a")]
)
def test_empty_stop_strings_would_end_every_answer_at_once(stop: Any, kept: Any) -> None:
    assert sent(stop=stop).get("stop") == kept


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest",
        "https://example.org/a.png",
        "httpx",
        "file:///etc/passwd",
        "FTP://x",
        " http://x",
    ],
)
def test_no_address_is_ever_fetched_for_a_client(url: str) -> None:
    for messages in (
        image({"url": url}),
        image(url),
        [{"role": "tool", "content": [{"type": "input_audio", "input_audio": {"data": url}}]}],
        [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": url}}]}],
        [{"role": "user", "content": [{"type": "input_video", "input_video": {"data": url}}]}],
    ):
        assert refusal(messages=messages).code == "invalid_image_url"


def test_an_address_cannot_hide_behind_escapes() -> None:
    body = (
        rb'{"model": "m", "messages": [{"role": "user", "content": [{"\u0074ype": "image_url",'
        rb' "im\u0061ge_url": {"u\u0072l": "\u0068ttp://10.0.0.1/"}}]}]}'
    )
    with pytest.raises(BadRequest):
        read_chat(body)


def test_bytes_of_an_image_are_passed_on() -> None:
    assert call(messages=image({"url": "data:image/png;base64,aHR0cDovLw=="})).translation is None
    assert call(messages=[{"role": "user", "content": "see http://example.org"}, *HELLO]).translation is None


def test_more_choices_than_slots_are_refused_before_they_are_asked_for() -> None:
    assert call(n=2).translation is None
    assert refusal(n=3).param == "n"


def test_alternatives_need_probabilities() -> None:
    assert refusal(top_logprobs=2).param == "top_logprobs"
    assert call(top_logprobs=2, logprobs=True).translation is None
    assert sent(top_logprobs=0, logprobs=True)["top_logprobs"] == 1  # with 0 llama-server tells nothing


def test_a_client_that_used_an_alias_is_answered_by_it() -> None:
    translation = call(model="gpt-4o").translation
    answer = json.loads(translation.whole(golden("thinking.json"), 0))
    assert answer["model"] == "gpt-4o"
    assert {**answer, "model": "scripted"} == json.loads(golden("thinking.json"))


@settings(max_examples=30)
@given(st.lists(st.integers(0, 10_000), max_size=12))
def test_however_a_stream_is_cut_only_the_name_differs(places: list[int]) -> None:
    stream = golden("chat_stream.sse")
    translation = Renamed("cria", 'a "name"', stream=True)

    sent = [translation.feed(piece, 0) for piece in cut(stream, places)]

    assert all(not piece or piece.endswith(b"\n\n") for piece in sent)
    expected = stream.replace(b'"model":"cria"', rb'"model":"a \"name\""')
    assert b"".join(sent) + translation.end(0) == expected


def test_a_text_about_models_is_left_alone() -> None:
    said = b'data: {"delta":{"content":"\\"model\\":\\"cria\\""},"model":"cria"}\n\n'
    translation = Renamed("cria", "x", stream=True)
    assert translation.feed(said, 0) == said.replace(b'"model":"cria"', b'"model":"x"')
    assert translation.fail(Problem(status=502, message="gone"), 0).startswith(b'data: {"error":')


def test_functions_of_old_become_tools() -> None:
    history = [
        *HELLO,
        {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": "{}"}},
        {"role": "function", "name": "weather", "content": "sunny"},
    ]
    body = sent(messages=history, functions=[WEATHER["function"]], function_call="auto")

    assert body["tools"] == [WEATHER]
    assert (body["tool_choice"], body["parallel_tool_calls"]) == ("auto", False)
    assert "functions" not in body
    called, answered = body["messages"][1:]
    assert called["tool_calls"][0]["id"] == answered["tool_call_id"]
    assert (answered["role"], answered["content"]) == ("tool", "sunny")
    named = sent(functions=[WEATHER["function"], NEWS["function"]], function_call={"name": "news"})
    assert (named["tools"], named["tool_choice"]) == ([NEWS], "required")


def test_functions_that_make_no_sense_are_refused() -> None:
    assert refusal(functions="weather").param == "functions"
    assert refusal(functions=[NEWS["function"]], function_call="always").param == "function_call"
    assert refusal(function_call="auto").param == "function_call"


def test_a_call_comes_back_as_a_function_call() -> None:
    translation = call(model="gpt", functions=[WEATHER["function"]]).translation
    answer = json.loads(translation.whole(golden("tool_call.json"), 0))
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "function_call"
    assert choice["message"]["function_call"] == {"name": "get_weather", "arguments": '{"city": "Paris"}'}
    assert "tool_calls" not in choice["message"]
    assert answer["model"] == "gpt"


@settings(max_examples=20)
@given(st.lists(st.integers(0, 10_000), max_size=8))
def test_a_streamed_call_comes_back_as_pieces_of_one(places: list[int]) -> None:
    translation = FunctionCalls("gpt", stream=True)
    out = b"".join(translation.feed(piece, 0) for piece in cut(golden("tool_call_stream.sse"), places))

    *chunks, done = [content for _, content in events(out)]
    pieces = [chunk["choices"][0]["delta"].get("function_call") for chunk in chunks]
    assert done == "[DONE]"
    assert next(piece["name"] for piece in pieces if piece) == "get_weather"
    assert "".join(piece["arguments"] for piece in pieces if piece) == '{"city": "Paris"}'
    assert chunks[-1]["choices"][0]["finish_reason"] == "function_call"


def test_an_error_in_mid_stream_ends_a_translated_stream() -> None:
    translation = FunctionCalls("gpt", stream=True)
    broken = b'data: {"error":{"code":500,"message":"decode failed","type":"server_error"}}\n\ndata: {"choices":[]}\n\n'
    ((_, content),) = events(translation.feed(broken, 0))
    assert content["error"]["message"] == "decode failed"
    assert translation.fail(Problem(status=502, message="again"), 0) == b""


def test_every_route_says_what_it_is_for() -> None:
    assert len({route.path for route in ROUTES}) == len(ROUTES)
    for route in ROUTES:
        assert route.about
        if route.example.startswith("{"):  # others are forms
            assert route.read(route.example.encode(), ()).model

"""LM Studio's chat: requests become chat completions, llama-server's real answers become events and results."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.golden import cut, golden
from harness.golden import events as events_of
from llamaherd_gateway.dialects.dialect import Facts, Turn
from llamaherd_gateway.dialects.lmstudio import LMSTUDIO, ROUTES
from llamaherd_gateway.dialects.lmstudio.chat import call_chat, read_chat
from llamaherd_gateway.dialects.lmstudio.chat_answer import ChatAnswer
from llamaherd_gateway.problems import BadRequest, Problem, problem_of
from llamaherd_shared.errors import Unavailable

THINKING = golden("thinking_stream.sse")
PROGRESS = golden("chat_progress_stream.sse")
TIMED = (
    b'data: {"choices":[{"delta":{"reasoning_content":"Hm"}}],"timings":{"cache_n":1,"prompt_n":4,"predicted_n":3}}\n\n'
    b'data: {"choices":[{"delta":{"reasoning_content":"m"}}],"timings":{"cache_n":1,"prompt_n":4,"predicted_n":5}}\n\n'
    b'data: {"choices":[{"delta":{"content":"4"}}],"timings":{"cache_n":1,"prompt_n":4,"predicted_n":8}}\n\n'
    b'data: {"choices":[{"delta":{},"finish_reason":"stop"}],'
    b'"timings":{"cache_n":1,"prompt_n":4,"predicted_n":9,"predicted_per_second":null}}\n\ndata: [DONE]\n\n'
)
SECOND = 1_000_000_000
TURN = Turn(request_id="0f", received_ns=100 * SECOND)
LOADED = Turn(request_id="0f", received_ns=100 * SECOND, load_ns=2 * SECOND)
THINKER = Facts(model="m", capabilities=frozenset({"completion", "thinking"}))


def asked(**fields: Any) -> dict[str, Any]:
    """The body that llama-server gets."""
    facts = fields.pop("facts", Facts(model="own-name"))
    body = json.dumps({"model": "m", "input": "Hi", **fields}).encode()
    content: dict[str, Any] = json.loads(call_chat(read_chat(body), facts, TURN).body)
    return content


def refusal(facts: Facts | None = None, **fields: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        asked(facts=facts or Facts(model="m"), **fields)
    return caught.value


def events(data: bytes) -> list[tuple[str, dict[str, Any]]]:
    assert data.endswith(b"\n\n")
    found = events_of(data)
    assert all(name == content["type"] for name, content in found)
    return found


def stream(*pieces: bytes, turn: Turn = TURN, at_ns: int = 101 * SECOND) -> list[tuple[str, dict[str, Any]]]:
    answer = ChatAnswer("m", turn, stream=True)
    return events(b"".join([*(answer.feed(piece, at_ns) for piece in pieces), answer.end(at_ns)]))


def names(told: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """Names of events, each once where it is repeated."""
    found = [name for name, _ in told]
    return [name for place, name in enumerate(found) if place == 0 or found[place - 1] != name]


# Requests.


def test_a_question_becomes_a_chat_with_the_models_own_name() -> None:
    assert asked() == {"model": "own-name", "messages": [{"role": "user", "content": "Hi"}], "stream": False}


def test_every_parameter_has_its_place() -> None:
    body = asked(
        system_prompt="Be short.",
        stream=True,
        temperature=0.5,
        top_p=0.9,
        top_k=3,
        min_p=0.1,
        repeat_penalty=1.1,
        max_output_tokens=7,
        context_length=4096,
        store=True,
        integrations=[],
        previous_response_id=None,
    )
    assert body == {
        "model": "own-name",
        "messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}],
        "stream": True,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 3,
        "min_p": 0.1,
        "repeat_penalty": 1.1,
        "max_tokens": 7,
        "return_progress": True,
        "timings_per_token": False,
    }


def test_text_and_images_are_parts_of_one_message() -> None:
    image = "data:image/png;base64,AAAA"
    parts = [
        {"type": "text", "content": "a"},
        {"type": "message", "content": "b"},
        {"type": "image", "data_url": image},
    ]
    assert asked(input=parts)["messages"][0]["content"] == [
        {"type": "text", "text": "a"},
        {"type": "text", "text": "b"},
        {"type": "image_url", "image_url": {"url": image}},
    ]


@pytest.mark.parametrize("address", ["http://10.0.0.1/x.png", "file:///etc/passwd", "AAAA"])
def test_no_address_of_an_image_reaches_llama_server(address: str) -> None:
    assert "data URL" in refusal(input=[{"type": "image", "data_url": address}]).message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"type": "message"}]}, "input"),
        ({"input": [{"type": "image"}]}, "input"),
        ({"model": None}, "model"),
        ({"seed": 5}, "seed"),
    ],
)
def test_what_is_missing_or_unknown_is_named(fields: dict[str, Any], param: str) -> None:
    assert refusal(**fields).param == param


def test_wrong_types_are_located() -> None:
    assert "`input[0].type`" in refusal(input=[{"type": "video"}]).message
    assert "`max_output_tokens`" in refusal(max_output_tokens=0).message
    assert "`reasoning`" in refusal(reasoning="maximal").message


def test_what_needs_tools_is_not_implemented() -> None:
    refused = refusal(integrations=["mcp/x"])
    error = json.loads(LMSTUDIO.render_problem(problem_of(refused), ""))["error"]
    assert refused.status == 501
    assert (error["type"], error["param"]) == ("not_implemented", "integrations")


def test_reasoning_is_switched_by_the_template() -> None:
    assert asked(facts=THINKER, reasoning="off")["chat_template_kwargs"] == {"enable_thinking": False}
    assert asked(facts=THINKER, reasoning="on")["chat_template_kwargs"] == {"enable_thinking": True}
    low = asked(facts=THINKER, reasoning="low")
    assert (low["reasoning_effort"], low["chat_template_kwargs"]) == ("low", {"enable_thinking": True})


def test_reasoning_that_would_not_happen_or_not_end_is_refused() -> None:
    assert refusal(reasoning="high").param == "reasoning"
    assert asked(reasoning="off")
    gpt_oss = Facts(model="m", architecture="gpt-oss", capabilities=frozenset({"thinking"}))
    assert "low, medium, high" in refusal(facts=gpt_oss, reasoning="off").message


def test_tokens_are_counted_while_a_thinking_model_streams() -> None:
    assert asked(facts=THINKER, stream=True)["timings_per_token"] is True


@given(st.binary(max_size=100))
@settings(max_examples=40)
def test_any_body_is_read_or_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        read_chat(body)


@given(
    st.dictionaries(
        st.sampled_from(["model", "input", "stream", "top_k", "reasoning", "integrations", "x"]),
        st.sampled_from([None, True, -1, 7, 10**30, 0.5, "", "on", "low", [], [5], {}]),
    )
)
@settings(max_examples=40)
def test_any_object_is_put_to_llama_server_or_refused(fields: dict[str, Any]) -> None:
    with contextlib.suppress(BadRequest):
        call = call_chat(read_chat(json.dumps(fields).encode()), THINKER, TURN)
        assert json.loads(call.body)["messages"]


# Streams.


def test_the_events_of_a_real_stream_come_in_order() -> None:
    told = stream(PROGRESS)
    assert names(told) == [
        "chat.start",
        "prompt_processing.start",
        "prompt_processing.progress",
        "prompt_processing.end",
        "message.start",
        "message.delta",
        "message.end",
        "chat.end",
    ]
    assert told[0][1] == {"type": "chat.start", "model_instance_id": "m"}
    progress = [content["progress"] for name, content in told if name == "prompt_processing.progress"]
    assert progress[0] == 0
    assert progress[-1] == 1
    text = "".join(content["content"] for name, content in told if name == "message.delta")
    assert told[-1][1]["result"]["output"] == [{"type": "message", "content": text}]


def test_reasoning_comes_before_the_message() -> None:
    told = stream(THINKING)
    assert names(told)[3:] == [
        "reasoning.start",
        "reasoning.delta",
        "reasoning.end",
        "message.start",
        "message.delta",
        "message.end",
        "chat.end",
    ]
    kinds = [part["type"] for part in told[-1][1]["result"]["output"]]
    assert kinds == ["reasoning", "message"]


def test_statistics_come_from_the_timings() -> None:
    stats = stream(TIMED)[-1][1]["result"]["stats"]
    assert stats == {
        "input_tokens": 5,
        "total_output_tokens": 9,
        "reasoning_output_tokens": 5,
        "tokens_per_second": 0.0,
        "time_to_first_token_seconds": 1.0,
    }


def test_loading_is_told_and_not_counted_as_waiting_for_the_first_token() -> None:
    told = stream(PROGRESS, turn=LOADED, at_ns=105 * SECOND)
    assert names(told)[:4] == ["chat.start", "model_load.start", "model_load.end", "prompt_processing.start"]
    assert told[2][1]["load_time_seconds"] == 2.0
    stats = told[-1][1]["result"]["stats"]
    assert stats["model_load_time_seconds"] == 2.0
    assert stats["time_to_first_token_seconds"] == 3.0


@settings(max_examples=40)
@given(st.sampled_from([PROGRESS[:6000] + TIMED, THINKING, TIMED]), st.lists(st.integers(0, 10**6), max_size=20))
def test_any_split_of_the_bytes_gives_the_same_events(data: bytes, places: list[int]) -> None:
    assert stream(*cut(data, places)) == stream(data)


def test_pings_and_lone_bytes_say_nothing_twice() -> None:
    answer = ChatAnswer("m", TURN, stream=True)
    assert [name for name, _ in events(answer.feed(b":\n\n", 0))] == ["chat.start", "prompt_processing.start"]
    assert answer.feed(b":\n\ndata: {broken\n\n", 0) == b""


def test_an_error_in_the_stream_is_followed_by_what_there_was() -> None:
    begun = THINKING[: THINKING.index(b"data:", 2000)]
    error = b'data: {"error":{"code":400,"message":"too long","type":"exceed_context_size_error"}}\n\n'
    told = stream(begun, error)
    assert names(told)[-3:] == ["reasoning.end", "error", "chat.end"]
    assert told[-2][1]["error"] == {"type": "invalid_request", "message": "too long", "code": "context_length_exceeded"}
    assert told[-1][1]["result"]["output"][0]["content"]


def test_a_stream_that_breaks_still_begins_and_ends() -> None:
    problem = problem_of(Unavailable("the model is gone"))
    before = events(LMSTUDIO.render_stream_error(problem, ""))
    assert names(before) == ["chat.start", "error", "chat.end"]
    for said in (b"", THINKING[:2000]):
        answer = ChatAnswer("m", TURN, stream=True)
        told = events(answer.feed(said, 0) + answer.fail(problem, 0))
        assert names(told)[0] == "chat.start"
        assert names(told)[-2:] == ["error", "chat.end"]
        assert told[-2][1]["error"]["type"] == "internal_error"
        assert before[-1][1]["result"]["stats"].keys() == told[-1][1]["result"]["stats"].keys()


# Plain answers.


def whole(name: str, turn: Turn = TURN, at_ns: int = 101 * SECOND) -> dict[str, Any]:
    answer = ChatAnswer("m", turn, stream=False)
    assert answer.content_type == b"application/json"
    content: dict[str, Any] = json.loads(answer.whole(golden(f"{name}.json"), at_ns))
    return content


def test_a_plain_answer_is_the_result_of_a_stream() -> None:
    result = whole("thinking")
    streamed = stream(THINKING)[-1][1]["result"]
    assert result.keys() == streamed.keys()
    assert result["stats"].keys() == streamed["stats"].keys()
    assert result["output"] == streamed["output"]


def test_statistics_of_a_plain_answer() -> None:
    stats = whole("thinking", LOADED, 103 * SECOND)["stats"]
    given = json.loads(golden("thinking.json"))
    assert stats["input_tokens"] == given["usage"]["prompt_tokens"]
    assert stats["total_output_tokens"] == given["usage"]["completion_tokens"]
    assert 0 < stats["reasoning_output_tokens"] < stats["total_output_tokens"]
    assert stats["tokens_per_second"] == given["timings"]["predicted_per_second"]
    assert stats["time_to_first_token_seconds"] == pytest.approx(1.0, abs=0.02)
    assert whole("chat")["stats"]["reasoning_output_tokens"] == 0


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"choices":[{}]}', b"<html>", b'{"choices":5}'])
def test_an_answer_that_makes_no_sense_is_an_error(body: bytes) -> None:
    with pytest.raises(ValueError, match="llama-server's answer"):
        ChatAnswer("m", TURN, stream=False).whole(body, 0)


# Errors.


@pytest.mark.parametrize(
    ("problem", "kind", "code"),
    [
        (Problem(status=404, message="m", code="model_not_found", param="model"), "model_not_found", None),
        (Problem(status=404, message="m", code="job_not_found"), "job_not_found", None),
        (Problem(status=400, message="m", code="missing_model"), "invalid_request", "missing_required_parameter"),
        (Problem(status=429, message="m", code="rate_limit"), "invalid_request", "rate_limit"),
        (Problem(status=501, message="m"), "not_implemented", None),
        (Problem(status=503, message="m", code="unavailable"), "internal_error", "unavailable"),
    ],
)
def test_errors_have_lm_studios_types(problem: Problem, kind: str, code: str | None) -> None:
    error = json.loads(LMSTUDIO.render_problem(problem, ""))["error"]
    assert (error["type"], error.get("code")) == (kind, code)
    assert error.get("param") == problem.param


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
def test_every_route_can_call_with_its_example(route: Any) -> None:
    asked = route.read(route.example.encode(), ())
    call = route.call(asked, Facts(model=asked.model), TURN)
    assert call.path.startswith("/v1/")
    assert json.loads(call.body)["model"] == asked.model

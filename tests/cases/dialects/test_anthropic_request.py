"""Messages become chat completions, and what cannot be one is refused with its place."""

import contextlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamaherd_gateway.dialects.anthropic import ROUTES
from llamaherd_gateway.dialects.anthropic.answer import Expected
from llamaherd_gateway.dialects.anthropic.request import call_chat, call_count, read_count, read_messages
from llamaherd_gateway.dialects.dialect import Facts, Turn
from llamaherd_gateway.problems import BadRequest

FACTS = Facts(model="own-name")
TURN = Turn(request_id="7f", received_ns=1)
HELLO: Any = {"model": "claude-x", "max_tokens": 9, "messages": [{"role": "user", "content": "Hello"}]}
TOOL: Any = {"name": "get_weather", "description": "The weather", "input_schema": {"type": "object", "properties": {}}}
OTHER_TOOL: Any = {"type": "custom", "name": "get_time", "input_schema": {"type": "object"}}


def chat(**changes: Any) -> dict[str, Any]:
    """What llama-server is asked."""
    asked = read_messages(json.dumps(HELLO | changes).encode())
    sent: dict[str, Any] = json.loads(call_chat(asked, FACTS, TURN).body)
    return sent


def expected(**changes: Any) -> Expected:
    found: Expected = read_messages(json.dumps(HELLO | changes).encode()).content.expected
    return found


def refusal(**changes: Any) -> str:
    with pytest.raises(BadRequest) as caught:
        read_messages(json.dumps(HELLO | changes).encode())
    assert caught.value.status == 400
    return caught.value.message


def test_a_message_is_put_as_a_chat_completion_to_the_models_own_name() -> None:
    asked = read_messages(json.dumps(HELLO).encode())
    call = call_chat(asked, FACTS, TURN)

    assert (asked.model, asked.stream) == ("claude-x", False)
    assert call.path == "/v1/chat/completions"
    assert json.loads(call.body) == {
        "model": "own-name",
        "messages": [{"role": "user", "content": "Hello"}],
        "chat_template_kwargs": {"enable_thinking": False},
        "max_tokens": 9,
    }


def test_a_stream_is_asked_for_its_usage_and_progress() -> None:
    sent = chat(stream=True)

    assert sent["stream"] is True
    assert sent["stream_options"] == {"include_usage": True}
    assert sent["return_progress"] is True
    assert read_messages(json.dumps(HELLO | {"stream": True}).encode()).stream


def test_samplers_keep_their_names_and_their_silence() -> None:
    samplers = {"temperature": 0.5, "top_p": 1, "top_k": 40, "min_p": 0.1, "seed": 3}

    assert samplers.items() <= chat(**samplers).items()
    assert not {"temperature", "top_p", "top_k", "stop"} & chat(temperature=None, stop_sequences=[]).keys()


def test_stop_sequences_are_passed_without_empty_ones_and_asked_back() -> None:
    sent = chat(stop_sequences=["END", ""])

    assert sent["stop"] == ["END"]
    assert (sent["verbose"], sent["response_fields"]) == (True, ["stopping_word"])
    assert expected(stop_sequences=["END", ""]).stop_sequences == {"END"}
    assert "verbose" not in chat(stop_sequences=[""])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_tokens": None}, "max_tokens: required"),
        ({"max_tokens": 0}, "max_tokens: required"),
        ({"max_tokens": -1}, "max_tokens: required"),
        ({"messages": None}, "messages: at least one"),
        ({"messages": []}, "messages: at least one"),
        ({"messages": [{"role": "system", "content": "a"}]}, "messages: at least one"),
        ({"model": None}, "model"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "role"),
        ({"temperature": "hot"}, "temperature"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0: `web_search_20250305`"),
        ({"tools": [{"name": "f"}]}, "tools.0.input_schema"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "nope"}}, "`nope` is not among `tools`"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"thinking": {"type": "deep"}}, "thinking"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused(changes: dict[str, Any], said: str) -> None:
    assert said in refusal(**changes)


@pytest.mark.parametrize(
    ("choice", "names", "tool_choice"),
    [
        (None, ["get_weather", "get_time"], None),
        ({"type": "auto"}, ["get_weather", "get_time"], None),
        ({"type": "any"}, ["get_weather", "get_time"], "required"),
        ({"type": "tool", "name": "get_time"}, ["get_time"], "required"),
        ({"type": "none"}, None, None),
    ],
)
def test_a_choice_of_tools_leaves_those_the_model_may_call(choice: Any, names: Any, tool_choice: Any) -> None:
    sent = chat(tools=[TOOL, OTHER_TOOL], tool_choice=choice)

    assert (names is None) == ("tools" not in sent)
    assert [tool["function"]["name"] for tool in sent.get("tools", [])] == (names or [])
    assert sent.get("tool_choice") == tool_choice
    assert "parallel_tool_calls" not in sent


def test_a_tool_is_a_function_and_one_at_a_time_is_kept() -> None:
    sent = chat(tools=[TOOL], tool_choice={"type": "auto", "disable_parallel_tool_use": True})

    function = {"name": "get_weather", "description": "The weather", "parameters": TOOL["input_schema"]}
    assert sent["tools"] == [{"type": "function", "function": function}]
    assert sent["parallel_tool_calls"] is False


@pytest.mark.parametrize(
    ("thinking", "on", "budget", "thoughts"),
    [
        (None, False, None, "hidden"),
        ({"type": "disabled"}, False, None, "hidden"),
        ({"type": "adaptive"}, True, None, "shown"),
        ({"type": "enabled", "budget_tokens": 2048}, True, 2048, "shown"),
        ({"type": "enabled", "budget_tokens": 2048, "display": "omitted"}, True, 2048, "omitted"),
    ],
)
def test_a_model_thinks_when_it_is_asked_to(thinking: Any, on: bool, budget: int | None, thoughts: str) -> None:
    sent = chat(thinking=thinking)

    assert sent["chat_template_kwargs"] == {"enable_thinking": on}
    assert sent.get("reasoning_budget_tokens") == budget
    assert expected(thinking=thinking).thoughts == thoughts


def test_arguments_of_the_chat_template_are_the_clients_to_set() -> None:
    kwargs = {"enable_thinking": True, "style": "old"}

    assert chat(chat_template_kwargs=kwargs)["chat_template_kwargs"] == kwargs
    assert expected(chat_template_kwargs=kwargs).thoughts == "shown"


def test_effort_and_form_of_the_output_are_passed_on() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    format_ = {"type": "json_schema", "schema": schema}
    wrapped = {"type": "json_schema", "json_schema": {"name": "output", "schema": schema}}

    assert chat(output_config={"effort": "max", "format": format_})["response_format"] == wrapped
    assert chat(output_format=format_)["response_format"] == wrapped
    assert chat(output_config={"effort": "max"})["reasoning_effort"] == "high"
    assert chat(output_config={"effort": "low"})["reasoning_effort"] == "low"


def test_an_answer_that_was_begun_is_continued() -> None:
    said: Any = [*HELLO["messages"], {"role": "assistant", "content": "I am"}]

    assert chat(messages=said)["continue_final_message"] is True
    assert chat(messages=said)["add_generation_prompt"] is False
    assert expected(messages=said).spoken == "I am"
    assert "continue_final_message" not in chat()


def test_the_tokens_counted_are_those_of_the_same_prompt() -> None:
    request = HELLO | {"system": "Be brief.", "tools": [TOOL], "thinking": {"type": "adaptive"}}
    call = call_count(read_count(json.dumps(request).encode()), FACTS, TURN)

    assert call.path == "/v1/chat/completions/input_tokens"
    counted = json.loads(call.body)
    assert counted.items() <= chat(**request).items()
    assert "max_tokens" not in counted
    assert read_count(b'{"model":"m","messages":[{"role":"user","content":"a"}]}').model == "m"


def test_the_examples_of_the_documentation_are_read() -> None:
    for route in ROUTES:
        assert route.read(route.example.encode(), ()).model == "cria"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "text", "user", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["type", "text", "x"]), inner, max_size=2)
    ),
    max_leaves=4,
)
BLOCKS = st.dictionaries(
    st.sampled_from(["type", "text", "source", "content", "input", "id", "name", "tool_use_id", "thinking", "title"]),
    st.sampled_from(["text", "image", "document", "tool_use", "tool_result", "thinking", "base64", "url"]) | JSON,
    max_size=4,
)
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": st.lists(BLOCKS, max_size=2) | JSON}
)
BODIES = st.fixed_dictionaries(
    {"model": st.just("m"), "max_tokens": st.just(5), "messages": st.lists(MESSAGES, max_size=2) | JSON},
    optional=dict.fromkeys(["system", "tools", "tool_choice", "thinking", "output_config", "stop_sequences"], JSON),
)


@settings(max_examples=40)
@given(body=BODIES | JSON)
def test_any_json_is_put_to_llama_server_or_refused(body: Any) -> None:
    text = json.dumps(body).encode()
    for read, call in ((read_messages, call_chat), (read_count, call_count)):
        with contextlib.suppress(BadRequest):
            assert msgspec.json.decode(call(read(text), FACTS, TURN).body)["model"] == "own-name"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b'{"model":"m","max_tokens":5,"messages":[{"role":"user","content":"\xff"}]}',
        b'{"model":"m","max_tokens":5,"messages":[{"role":"user","content":[{"type":"text","text":"\xff"}]}]}',
        b'{"model":"m","max_tokens":5,"messages":[{"role":"user","content":' + b"[" * 5000,
        b'{"model":"m","max_tokens":5,"messages":[{"role":"user","content":"a"}],"tools":[{"name":"f","input_schema":'
        + b'{"a":' * 980 + b"1" + b"}" * 980 + b"}]}",
    ],
)  # fmt: skip
def test_bytes_that_are_no_text_and_nesting_without_end_are_refused_not_a_crash(body: bytes) -> None:
    with contextlib.suppress(BadRequest):
        call_chat(read_messages(body), FACTS, TURN)

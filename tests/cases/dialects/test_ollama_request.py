"""Requests of Ollama's clients are read, or refused in Ollama's words, and become llama-server's."""

import asyncio
import base64
import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamaherd_gateway.dialects.dialect import Ask, Asked, Call, Facts, Turn
from llamaherd_gateway.dialects.ollama import ROUTES
from llamaherd_gateway.dialects.ollama.backend import call, prepare
from llamaherd_gateway.dialects.ollama.request import read_chat, read_generate
from llamaherd_gateway.problems import BadRequest

ABLE = Facts(
    model="own",
    context_tokens=1000,
    capabilities=frozenset({"completion", "tools", "thinking", "insert", "vision"}),
)
PLAIN = Facts(model="own", context_tokens=1000)
TURN = Turn(request_id="ab", received_ns=0)
HI = [{"role": "user", "content": "Hi"}]
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n____").decode()
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def chat(facts: Facts = PLAIN, **fields: Any) -> dict[str, Any]:
    """What llama-server is asked for a chat with these fields."""
    asked = read_chat(json.dumps({"model": "m", "messages": HI, **fields}).encode())
    sent: dict[str, Any] = json.loads(call(asked, facts, TURN).body)
    return sent


def generate(facts: Facts = PLAIN, **fields: Any) -> tuple[str, dict[str, Any]]:
    """(path, body)"""
    made = call(read_generate(json.dumps({"model": "m", "prompt": "Hi", **fields}).encode()), facts, TURN)
    return made.path, json.loads(made.body)


def refusal(path: str, body: Any, facts: Facts = PLAIN) -> tuple[int, str]:
    route = next(route for route in ROUTES if route.path == path)
    with pytest.raises(BadRequest) as caught:
        make_call(path, body if isinstance(body, bytes) else json.dumps(body).encode(), facts)
    assert route.dialect.name == "ollama"
    return caught.value.status, caught.value.message


def make_call(path: str, body: bytes, facts: Facts) -> Call:
    route = next(route for route in ROUTES if route.path == path)
    assert route.call is not None
    return route.call(route.read(body, ()), facts, TURN)


def test_a_chat_goes_to_the_chat_route_with_ollamas_defaults() -> None:
    assert chat() == {
        "model": "own",
        "messages": HI,
        "stream": True,
        "n_predict": 10_000,
        "n_keep": 4,
        "temperature": 0.8,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.0,
        "typical_p": 1.0,
        "repeat_last_n": 64,
        "repeat_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": -1,
        "stop": [],
    }


def test_streaming_is_the_default() -> None:
    def streams(**fields: Any) -> bool:
        return read_chat(json.dumps({"model": "m", "messages": HI, **fields}).encode()).stream

    assert streams()
    assert streams(stream=None)
    assert streams(stream=True)
    assert not streams(stream=False)
    assert chat(stream=False)["stream"] is False


def test_a_generation_becomes_a_chat_of_system_and_user() -> None:
    path, sent = generate(system="Be brief.", images=[PNG])

    assert path == "/v1/chat/completions"
    assert sent["messages"] == [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Hi"},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
            ],
        },
    ]


def test_a_raw_prompt_is_continued_as_it_is() -> None:
    path, sent = generate(raw=True, format="json", logprobs=True, stream=False)

    assert path == "/completion"
    assert (sent["prompt"], sent["stream"], sent["n_probs"]) == ("Hi", False, 1)
    assert sent["json_schema"] == {"type": "object"}


def test_a_suffix_makes_it_a_filling() -> None:
    path, sent = generate(ABLE, suffix="bye", format={"type": "string"}, logprobs=True, top_logprobs=3)

    assert path == "/infill"
    assert (sent["input_prefix"], sent["input_suffix"], sent["n_probs"]) == ("Hi", "bye", 3)
    assert sent["json_schema"] == {"type": "string"}


def test_images_of_a_raw_prompt_stand_where_ollamas_marks_stood() -> None:
    asked_paths = []

    async def ask(path: str, content: Any) -> Any:
        asked_paths.append(path)
        return {"prompt": "<|user|><__media_x1__><|assistant|>"}

    body = {"model": "m", "prompt": "See [img-0]?", "raw": True, "images": [PNG, PNG]}
    asked = asyncio.run(prepare(read_generate(json.dumps(body).encode()), ABLE, ask))
    sent = json.loads(call(asked, ABLE, TURN).body)

    assert asked_paths == ["/apply-template"]
    assert sent["prompt"] == {
        "prompt_string": "<__media_x1__>See <__media_x1__>?",
        "multimodal_data": [PNG, PNG],
    }


@pytest.mark.parametrize(
    ("start", "part"),
    [
        (b"\xff\xd8\xff\xe0", "data:image/jpeg;base64,"),
        (b"GIF89a", "data:image/gif;base64,"),
        (b"RIFF\0\0\0\0WEBP", "data:image/webp;base64,"),
        (b"BM", "data:image/bmp;base64,"),
        (b"what?", "data:image/jpeg;base64,"),
    ],
)
def test_the_kind_of_an_image_is_seen_from_its_first_bytes(start: bytes, part: str) -> None:
    data = base64.b64encode(start + b"0" * 40).decode()
    content = chat(messages=[{"role": "user", "images": [data]}])["messages"][0]["content"]
    assert content == [{"type": "image_url", "image_url": {"url": part + data}}]


@pytest.mark.parametrize(
    ("start", "kind"),
    [(b"RIFF\0\0\0\0WAVE", "wav"), (b"ID3", "mp3"), (b"\xff\xfb", "mp3"), (b"fLaC", "flac")],
)
def test_sounds_are_told_from_images(start: bytes, kind: str) -> None:
    data = base64.encodebytes(start + b"0" * 90).decode()
    content = chat(messages=[{"role": "user", "content": "Hear", "images": [data]}])["messages"][0]["content"]
    assert content[1] == {"type": "input_audio", "input_audio": {"data": data.replace("\n", ""), "format": kind}}


def test_formats_become_response_formats() -> None:
    schema = {"type": "object", "properties": {"z": {"type": "integer"}, "a": {}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "schema", "schema": schema}}
    assert chat(format="json")["response_format"] == {"type": "json_object"}
    assert chat(format=schema)["response_format"] == wanted
    assert list(chat(format=schema)["response_format"]["json_schema"]["schema"]["properties"]) == ["z", "a"]
    assert "response_format" not in chat(format="")
    assert "response_format" not in chat(format=None)


def test_models_that_can_think_do_unless_told_otherwise() -> None:
    assert chat(ABLE)["chat_template_kwargs"] == {"enable_thinking": True}
    assert chat(ABLE, think=False)["chat_template_kwargs"] == {"enable_thinking": False}
    assert chat(ABLE, think="low")["chat_template_kwargs"] == {"enable_thinking": True, "reasoning_effort": "low"}
    assert chat(PLAIN, think=False)["chat_template_kwargs"] == {"enable_thinking": False}
    assert "chat_template_kwargs" not in chat(PLAIN)
    assert generate(ABLE)[1]["chat_template_kwargs"] == {"enable_thinking": True}
    harmony = Facts(model="own", architecture="gpt-oss", capabilities=frozenset({"completion", "thinking"}))
    assert chat(harmony, think="max")["chat_template_kwargs"]["reasoning_effort"] == "high"


def test_tools_and_probabilities_are_asked_for_when_wanted() -> None:
    assert chat(ABLE, tools=[WEATHER])["tools"] == [WEATHER]
    assert "tools" not in chat(PLAIN, tools=[])
    assert "logprobs" not in chat(top_logprobs=3)
    assert (chat(logprobs=True)["logprobs"], chat(logprobs=True)["top_logprobs"]) == (True, 1)
    assert chat(logprobs=True, top_logprobs=5)["top_logprobs"] == 5


def test_tool_results_find_their_calls_by_the_tools_name() -> None:
    def use(name: str, **arguments: Any) -> dict[str, Any]:
        return {"function": {"name": name, "arguments": arguments}}

    messages = [
        {"role": "assistant", "thinking": "Hm", "tool_calls": [use("a", x=1), use("b"), use("a", x=2)]},
        {"role": "tool", "tool_name": "b", "content": "of b"},
        {"role": "Tool", "tool_name": "a", "content": "of a, first"},
        {"role": "tool", "content": "of a, second"},
        {"role": "assistant", "tool_calls": [{"id": "mine", "function": {"name": "a"}}]},
        {"role": "tool", "tool_call_id": "mine", "content": "x"},
        {"role": "tool", "tool_name": "a", "content": "nobody asked"},
    ]
    sent = chat(messages=messages)["messages"]

    assert [call["id"] for call in sent[0]["tool_calls"]] == ["call_0", "call_1", "call_2"]
    assert sent[0]["tool_calls"][0]["function"] == {"name": "a", "arguments": '{"x": 1}'}
    assert sent[0]["reasoning_content"] == "Hm"
    assert [message.get("tool_call_id") for message in sent] == [
        None,
        "call_1",
        "call_0",
        "call_2",
        None,
        "mine",
        None,
    ]
    assert sent[2]["role"] == "tool"
    assert sent[1]["name"] == "b"


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/api/chat", b" ", 400, "missing request body"),
        ("/api/embed", b"", 400, "missing request body"),
        ("/api/chat", {}, 400, "model is required"),
        ("/api/embeddings", {"prompt": "x"}, 400, "model is required"),
        ("/api/generate", {"prompt": "x"}, 404, "model '' not found"),
        ("/api/embed", {"input": "x"}, 404, "model '' not found"),
        ("/api/chat", {"model": "a//b", "messages": HI}, 400, "invalid model name"),
        ("/api/chat", {"model": "m:cloud"}, 403, "ollama cloud is disabled: remote model is unavailable"),
        ("/api/chat", {"model": "m:120b-cloud"}, 403, "ollama cloud is disabled: remote model is unavailable"),
        ("/api/chat", {"model": "m:local:cloud"}, 400, 'use either :local or :cloud, not both: "m:local:cloud"'),
        ("/api/chat", {"model": "m", "top_logprobs": 21}, 400, "top_logprobs must be between 0 and 20"),
        ("/api/chat", {"model": "m", "think": 1}, 400, "think must be a boolean or string"),
        ("/api/chat", {"model": "m", "think": "lots"}, 400, 'invalid think value: "lots" (must be "high", "medium"'),
        ("/api/chat", {"model": "m", "messages": HI, "think": True}, 400, '"m" does not support thinking'),
        ("/api/chat", {"model": "m", "messages": HI, "think": "max"}, 400, '"m" does not support thinking'),
        ("/api/chat", {"model": "m", "messages": "x"}, 400, "`messages`: expected `array"),
        ("/api/chat", {"model": "m", "messages": [{"content": []}]}, 400, "`messages[0].content`: expected `str"),
        ("/api/chat", {"model": "m", "messages": [{"images": ["?"]}]}, 400, "an image is not valid base64"),
        (
            "/api/chat",
            {"model": "m", "messages": HI, "tools": [WEATHER]},
            400,
            "registry.ollama.ai/library/m:latest does not support tools",
        ),
        (
            "/api/generate",
            {"model": "x/m:8b", "prompt": "a", "suffix": "b"},
            400,
            "registry.ollama.ai/x/m:8b does not support insert",
        ),
        (
            "/api/generate",
            {"model": "m", "prompt": "a", "raw": True, "system": "b"},
            400,
            "raw mode does not support template, system, or context",
        ),
        ("/api/generate", {"model": "m", "prompt": "a", "template": "b"}, 400, "`template` is not supported"),
        ("/api/generate", {"model": "m", "prompt": "a", "width": 64}, 400, "image generation models are not"),
        ("/api/generate", {"model": "m", "prompt": "a", "context": [1, 2]}, 400, "`context` was not made by this"),
        ("/api/generate", {"model": "m", "prompt": "a", "format": "xml"}, 400, 'invalid format: "\\"xml\\""; expected'),
        ("/api/embed", {"model": "m", "input": [1]}, 400, "invalid input type"),
        ("/api/embed", {"model": "m", "input": 1}, 400, "invalid input type"),
    ],
)
def test_refusals_have_ollamas_words(path: str, body: Any, status: int, message: str) -> None:
    refused = refusal(path, body)
    assert refused[0] == status
    assert refused[1].startswith(message)


def test_an_embedding_model_neither_chats_nor_generates() -> None:
    facts = Facts(model="own", capabilities=frozenset({"embedding"}))
    assert refusal("/api/chat", {"model": "m", "messages": HI}, facts)[1] == '"m" does not support chat'
    assert refusal("/api/generate", {"model": "m", "prompt": "x"}, facts)[1] == '"m" does not support generate'


def test_the_source_of_a_model_is_no_part_of_its_name() -> None:
    assert read_chat(b'{"model": " m:8b:local "}').model == "m:8b"
    assert read_chat(b'{"model": "hf.co/some/m.gguf:Q4_K_M"}').model == "hf.co/some/m.gguf:Q4_K_M"


@pytest.mark.parametrize(
    ("path", "body", "action"),
    [
        ("/api/chat", {"messages": HI, "keep_alive": 0}, "call"),
        ("/api/chat", {"messages": []}, "load"),
        ("/api/chat", {"keep_alive": "0"}, "unload"),
        ("/api/chat", {"keep_alive": -1}, "load"),
        ("/api/generate", {"prompt": ""}, "load"),
        ("/api/generate", {"prompt": "", "keep_alive": 0}, "unload"),
        ("/api/embed", {"input": ""}, "load"),
        ("/api/embed", {"input": [], "keep_alive": 0}, "unload"),
        ("/api/embed", {"input": ["a"], "keep_alive": 0}, "call"),
        ("/api/embeddings", {"prompt": ""}, "load"),
    ],
)
def test_empty_requests_load_and_unload(path: str, body: dict[str, Any], action: str) -> None:
    route = next(route for route in ROUTES if route.path == path)
    assert route.read(json.dumps({"model": "m", **body}).encode(), ()).action == action


def test_the_rendered_template_can_be_asked_for() -> None:
    asked = read_chat(json.dumps({"model": "m", "messages": HI, "_debug_render_only": True}).encode())
    made = call(asked, PLAIN, TURN)

    assert not asked.stream
    assert made.path == "/apply-template"
    assert json.loads(made.translation.whole(b'{"prompt":"<|user|>Hi"}', 0))["_debug_info"] == {
        "rendered_template": "<|user|>Hi"
    }


def counting(tokens_per_message: int) -> tuple[Ask, list[str]]:
    """A llama-server whose template is the number of messages, and what it was asked."""
    asked: list[str] = []

    async def ask(path: str, content: Any) -> Any:
        asked.append(path)
        if path == "/apply-template":
            return {"prompt": "x" * len(content["messages"])}
        return {"tokens": [1] * (tokens_per_message * len(content["content"]))}

    return ask, asked


def long_chat(**fields: Any) -> Asked:
    turns = [{"role": role, "content": "w" * 200} for _ in range(10) for role in ("user", "assistant")]
    messages = [{"role": "system", "content": "Be kind."}, *turns, *HI]
    return read_chat(json.dumps({"model": "m", "messages": messages, **fields}).encode())


def test_old_messages_give_way_when_the_context_is_too_short() -> None:
    ask, asked = counting(tokens_per_message=100)

    kept = asyncio.run(prepare(long_chat(), PLAIN, ask)).content.messages

    # 9 of 100 tokens fit under 1000; what is kept begins with a question.
    assert [message["role"] for message in kept] == ["system", *["user", "assistant"] * 3, "user"]
    assert kept[-1]["content"] == "Hi"
    assert len(asked) <= 2 * 4


def test_nothing_is_asked_about_what_fits_or_must_not_be_cut() -> None:
    ask, asked = counting(tokens_per_message=100)
    short = read_chat(json.dumps({"model": "m", "messages": HI}).encode())
    whole = long_chat(truncate=False)

    assert asyncio.run(prepare(short, PLAIN, ask)) is short
    assert asyncio.run(prepare(whole, PLAIN, ask)) is whole
    assert asyncio.run(prepare(long_chat(), Facts(model="own"), ask)).content.messages[0]["role"] == "system"
    assert asked == []


def test_the_last_message_stays_even_when_it_does_not_fit() -> None:
    ask, _ = counting(tokens_per_message=5000)
    kept = asyncio.run(prepare(long_chat(), PLAIN, ask)).content.messages
    assert [message["content"] for message in kept] == ["Be kind.", "Hi"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
FIELDS = st.sampled_from(
    (
        "messages prompt input stream format options keep_alive think tools images context raw suffix system logprobs "
        "top_logprobs truncate dimensions model"
    ).split()
)


@settings(max_examples=25)
@given(path=st.sampled_from([route.path for route in ROUTES]), fields=st.dictionaries(FIELDS, VALUES, max_size=4))
def test_any_json_body_is_put_to_llama_server_or_refused(path: str, fields: dict[str, Any]) -> None:
    with contextlib.suppress(BadRequest):
        json.loads(make_call(path, json.dumps({"model": "m", **fields}).encode(), ABLE).body)


@settings(max_examples=30)
@given(path=st.sampled_from([route.path for route in ROUTES]), body=st.binary(max_size=100))
def test_any_bytes_are_read_or_refused(path: str, body: bytes) -> None:
    with contextlib.suppress(BadRequest):
        make_call(path, body, ABLE)

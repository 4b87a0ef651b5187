"""Requests that are nearly right: the bodies that clients send, with fields dropped, doubled, swapped, retyped, nested.

As strategies of hypothesis: what it finds, it makes small.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from hypothesis import strategies as st

from llamaherd_gateway.routes import ROUTES

MODEL: Final = "m"
PIXEL: Final = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
SCHEMA: Final = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
FUNCTION: Final = {"name": "f", "description": "d", "parameters": SCHEMA}
TOOLS: Final = [{"type": "function", "function": FUNCTION}]
CALL: Final = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
OPENAI_PARTS: Final = [
    {"type": "text", "text": "a"},
    {"type": "image_url", "image_url": {"url": PIXEL}},
    {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
]

RICH: Final[Mapping[str, Sequence[dict[str, Any]]]] = {
    "/v1/chat/completions": [
        {
            "messages": [
                {"role": "user", "content": OPENAI_PARTS},
                {"role": "assistant", "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "c", "content": "r"},
            ],
            "tools": TOOLS,
            "tool_choice": {"type": "function", "function": {"name": "f"}},
            "stop": ["", "a"],
            "n": 2,
            "logprobs": True,
            "top_logprobs": 0,
            "stream_options": {"include_usage": True},
        },
        {
            "messages": [
                {"role": "user", "content": "x"},
                {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}},
                {"role": "function", "name": "f", "content": "r"},
            ],
            "functions": [FUNCTION],
            "function_call": {"name": "f"},
        },
    ],
    "/v1/completions": [
        {"prompt": ["a", [1, 2]], "n": 2, "best_of": 2, "echo": True, "logprobs": 2, "stop": "", "stream": True},
        {"prompt": "a", "suffix": "b", "logprobs": 1},
    ],
    "/v1/embeddings": [{"input": ["a", [1, 2]], "dimensions": 2, "encoding_format": "base64"}],
    "/v1/responses": [
        {
            "instructions": "i",
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
                {"role": "user", "content": [{"type": "input_image", "image_url": PIXEL}]},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": "r"},
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "t"}]},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "y"}]},
            ],
            "tools": [{"type": "function", **FUNCTION}],
            "tool_choice": {"type": "function", "name": "f"},
            "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}},
            "reasoning": {"effort": "low"},
            "stream": True,
        }
    ],
    "/v1/messages": [
        {
            "max_tokens": 9,
            "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "a"}]},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "t", "signature": "s"},
                        {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "r"}]},
                        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
                    ],
                },
            ],
            "tools": [{"name": "f", "description": "d", "input_schema": SCHEMA}],
            "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
            "thinking": {"type": "enabled", "budget_tokens": 1024},
            "stop_sequences": ["a", ""],
            "stream": True,
        }
    ],
    "/api/chat": [
        {
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": "a " * 300, "images": ["AAAA"]},
                {"role": "assistant", "thinking": "t", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
                {"role": "tool", "content": "r", "tool_name": "f"},
            ],
            "tools": TOOLS,
            "format": SCHEMA,
            "options": {"num_ctx": 100, "temperature": 0.1, "stop": ["a"], "num_predict": -1, "seed": 1},
            "keep_alive": "1h2m3.5s",
            "think": "high",
            "logprobs": True,
            "top_logprobs": 3,
        }
    ],
    "/api/generate": [
        {"prompt": "a", "system": "s", "context": [1, 2, 3], "images": ["AAAA"], "format": "json", "think": True},
        {"prompt": "a", "suffix": "b", "raw": True, "keep_alive": -1, "stream": False},
    ],
    "/api/embed": [{"input": ["a", "b " * 50], "truncate": True, "dimensions": 2, "options": {"num_ctx": 8}}],
    "/api/embeddings": [{"prompt": "a " * 40, "options": {}, "keep_alive": 0}],
    "/api/v1/chat": [
        {
            "input": [{"type": "message", "content": "a"}, {"type": "image", "data_url": PIXEL}],
            "system_prompt": "s",
            "temperature": 1,
            "max_output_tokens": 4,
            "reasoning": "off",
            "stream": True,
        }
    ],
    "/api/v0/chat/completions": [{"messages": [{"role": "user", "content": "a"}], "ttl": 30, "draft_model": "d"}],
    "/infill": [{"input_prefix": "a", "input_suffix": "b", "input_extra": [{"text": "a", "filename": "f"}]}],
}
"""Bodies with a bit of everything in them, by path; the model is put to them."""
MANAGING: Final[Mapping[str, Sequence[dict[str, Any]]]] = {
    "/api/show": [{"model": MODEL, "verbose": True}, {"name": MODEL}],
    "/api/create": [
        {
            "model": "made",
            "from": MODEL,
            "system": "s",
            "parameters": {"stop": ["a"], "num_predict": 4},
            "stream": False,
        }
    ],
    "/api/copy": [{"source": MODEL, "destination": "another"}],
    "/api/delete": [{"model": "none"}],
    "/api/pull": [{"model": "hf.co/owner/name:Q4_K_M", "stream": False}],
    "/api/v1/models/load": [{"model": MODEL, "context_length": 512, "echo_load_config": True}],
    "/api/v1/models/unload": [{"instance_id": "none"}],
    "/api/v1/models/download": [{"model": "owner/name", "quantization": "Q4_K_M"}],
}
"""The same, whole, for routes that change the herd."""


def deep(depth: int, *, objects: bool) -> Any:
    """A document nested so deep."""
    value: Any = "x"
    for _ in range(depth):
        value = {"a": value} if objects else [value]
    return value


ODD: Final[Sequence[Any]] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**30, -(2**63), 0.5, -1.5, 1e300, -0.0,
    "", "\0", "\u202e", "\u2028", "\U0001f600", "a" * 5000, "null", "data:", PIXEL, "http://x/y.png",
    "file:///etc/passwd", "../..", "m:latest", "1h", "-1", "999999999999h", "NaN", "user", "system", "tool",
    "auto", "none", "json_object", [], {}, [None], [[]], [{}], {"": None}, {"a": 1}, {"type": "text"}, [{"type": "x"}],
    {"role": "user"}, ["a", 1, None], [{"role": "user", "content": None}], deep(50, objects=True),
    deep(300, objects=False),
)  # fmt: skip
"""Values that some field will not expect."""
NAMES: Final = (
    "stream", "model", "messages", "prompt", "input", "options", "tools", "tool_choice", "think", "format",
    "keep_alive", "n", "stop", "ttl", "functions", "logprobs", "dimensions", "system", "max_tokens", "", "\0",
)  # fmt: skip


def seeds_of(path: str) -> list[dict[str, Any]]:
    """Valid bodies for a route."""
    if path in MANAGING:
        return list(MANAGING[path])
    route = next((route for route in ROUTES if route.path == path), None)
    example = [json.loads(route.example)] if route is not None and route.example.startswith("{") else []
    found = [*example, *RICH.get(path, ()), *RICH.get(f"/v1{path}", ())] or [{}]
    return [{**body, "model": MODEL} for body in found]


def places_in(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a document, as keys and indexes; but the document itself."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value[:8]):
            yield (*place, key)
            yield from places_in(inner, (*place, key))


def mangle(body: dict[str, Any], kind: int, where: int, what: int) -> dict[str, Any]:
    """One thing changed; which, the numbers say, whatever they are."""
    body = json.loads(json.dumps(body))
    odd = ODD[what % len(ODD)]
    places = list(places_in(body))
    if kind == 0 or not places:
        return {**body, NAMES[where % len(NAMES)]: odd}
    *way, last = places[where % len(places)]
    inside: Any = body
    for key in way:
        inside = inside[key]
    match kind:
        case 1:
            del inside[last]
        case 2 if isinstance(inside, list):
            inside.append(inside[last])
        case 3:
            # Something else of the document in its place.
            other: Any = body
            for key in places[what % len(places)]:
                other = other[key]
            inside[last] = json.loads(json.dumps(other))
        case _:
            inside[last] = odd
    return body


def write(body: dict[str, Any], how: int, where: int) -> bytes:
    """As JSON, or as something like it."""
    text = json.dumps(body, ensure_ascii=how % 2 == 0).encode("utf-8", "surrogatepass")
    at = where % (len(text) + 1)
    match how:
        case 2:
            return text[:at]
        case 3:
            return text[:at] + bytes([where % 256]) + text[at + 1 :]
        case 4:
            return b'{"model": 1, ' + text[1:]
        case 5:
            return text.replace(b"1", b"1e400")
        case 6:
            return text.replace(b"1", b"1" * 5000)
        case 7:
            return text.replace(b'"a"', b'"\\ud800"')
        case 8:
            return b"\xef\xbb\xbf" + text
        case 9:
            return text.replace(b"null", b"[" * 2000 + b"]" * 2000)
    return text


NUMBERS: Final = st.integers(0, 10_000)
EDITS: Final = st.lists(st.tuples(st.integers(0, 4), NUMBERS, NUMBERS), max_size=3)


@st.composite
def bodies_for(draw: st.DrawFn, paths: Sequence[str]) -> tuple[str, bytes]:
    """(path, body)"""
    path = draw(st.sampled_from(paths))
    body = draw(st.sampled_from(seeds_of(path)))
    for edit in draw(EDITS):
        body = mangle(body, *edit)
    # Most are valid JSON: what is not does not get far.
    return path, write(body, draw(st.one_of(st.just(0), st.integers(0, 9))), draw(NUMBERS))

"""The questions whose answers `record.py` keeps, by the llama-server they are put to."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple


class Server(NamedTuple):
    """One llama-server."""

    model: str
    """`cria` (the demo model), `scripted` or `random` (made by tests/harness)."""
    arguments: tuple[str, ...] = ()


class Case(NamedTuple):
    """One request; `name` is its answer's file without the ending."""

    name: str
    path: str
    body: Any = None
    """`None`: a GET. Bytes go as they are, everything else as JSON."""
    headers: Mapping[str, str] = {}


SERVERS: Final = {
    "cria": Server("cria", ("--context-shift", "--slots", "--metrics", "--props", "-np", "2", "-c", "512")),
    "scripted": Server("scripted", ("-np", "2", "-c", "2048")),
    "embedding": Server("random", ("--embedding", "--pooling", "mean", "-b", "64", "-ub", "64")),
    "reranking": Server("random", ("--reranking",)),
    "with_key": Server("cria", ("--api-key", "the-key-of-the-recording")),
}

STEADY: Final = {"temperature": 0, "seed": 1}
STREAMED: Final = {**STEADY, "stream": True}
COUNTED: Final = {**STREAMED, "stream_options": {"include_usage": True}}

PARAMETERS: Final = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION: Final = {"name": "get_weather", "description": "The weather of a city", "parameters": PARAMETERS}
TOOLS: Final = [{"type": "function", "function": FUNCTION}]
FORCED: Final = {"tools": TOOLS, "tool_choice": "required"}
TWICE: Final = {"tools": TOOLS, "parallel_tool_calls": True}
ANTHROPIC_TOOLS: Final = [{"name": "get_weather", "description": "The weather", "input_schema": PARAMETERS}]
TOWN: Final = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "inhabitants": {"type": "integer"}},
    "required": ["city", "inhabitants"],
}
PIXEL: Final = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
    "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
GAP: Final = {"input_prefix": "def add(a, b):\n", "input_suffix": "\n", "n_predict": 24}
FORM: Final = "the-boundary"
SPEECH: Final = (
    b'--the-boundary\r\nContent-Disposition: form-data; name="model"\r\n\r\ncria\r\n'
    b'--the-boundary\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n'
    b"Content-Type: audio/wav\r\n\r\nRIFF\r\n--the-boundary--\r\n"
)


def chat(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 48, **STEADY, **more}


def respond(text: Any, **more: Any) -> dict[str, Any]:
    return {"model": "m", "input": text, "max_output_tokens": 48, **STEADY, **more}


def complete(prompt: Any, **more: Any) -> dict[str, Any]:
    return {"model": "m", "prompt": prompt, "max_tokens": 12, **STEADY, **more}


CHAT: Final = "/v1/chat/completions"
HELLO: Final = "Hello"
FLAT_TOOLS: Final = [{"type": "function", **FUNCTION}]
AFTER_CALL: Final = [
    {"role": "user", "content": "the weather"},
    {"role": "assistant", "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Paris"}'}}
    ]},
    {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
]  # fmt: skip

CASES: Final[Mapping[str, list[Case]]] = {
    "cria": [
        Case("chat", CHAT, chat(HELLO)),
        Case("chat_stream", CHAT, chat(HELLO, **STREAMED)),
        Case("chat_stream_usage", CHAT, chat(HELLO, **COUNTED)),
        Case("chat_length", CHAT, chat(HELLO, max_tokens=4)),
        Case("chat_length_stream", CHAT, chat(HELLO, max_tokens=4, **STREAMED)),
        Case("chat_stop", CHAT, chat(HELLO, stop=[" demo"])),
        Case("chat_two_choices", CHAT, chat(HELLO, max_tokens=3, n=2)),
        Case("chat_two_choices_stream", CHAT, chat(HELLO, max_tokens=3, n=2, **STREAMED)),
        Case("chat_logprobs", CHAT, chat(HELLO, max_tokens=3, logprobs=True, top_logprobs=2)),
        Case("chat_logprobs_stream", CHAT, chat(HELLO, max_tokens=2, logprobs=True, top_logprobs=2, **STREAMED)),
        Case("chat_progress_stream", CHAT, chat("What is llamaherd?", max_tokens=3, return_progress=True, **STREAMED)),
        Case("chat_input_tokens", "/v1/chat/completions/input_tokens", chat(HELLO)),
        Case("text_completion", "/v1/completions", complete("Once")),
        Case("text_completion_stream", "/v1/completions", complete("Once", max_tokens=4, **STREAMED)),
        Case("text_completion_logprobs", "/v1/completions", complete("Once", max_tokens=3, logprobs=2)),
        Case("text_completion_logprobs_stream", "/v1/completions",
             complete("Once", max_tokens=2, logprobs=2, **STREAMED)),
        Case("text_completion_two_prompts", "/v1/completions", complete(["Once", "Twice upon"], max_tokens=3)),
        Case("completion", "/completion", {"prompt": "Once", "n_predict": 4, **STEADY}),
        Case("completion_stream", "/completion", {"prompt": "Once", "n_predict": 4, **STREAMED}),
        Case("completion_probabilities", "/completion", {"prompt": "Once", "n_predict": 2, "n_probs": 2, **STEADY}),
        Case("completion_probabilities_stream", "/completion",
             {"prompt": "Once", "n_predict": 2, "n_probs": 2, **STREAMED}),
        Case("completion_stop", "/completion", {"prompt": "Once", "n_predict": 16, "stop": ["e"], **STEADY}),
        Case("completion_tokens", "/completion", {"prompt": "Once", "n_predict": 2, "return_tokens": True, **STEADY}),
        Case("tokenize", "/tokenize", {"content": "Hello llamas"}),
        Case("tokenize_pieces", "/tokenize", {"content": "Hello llamas", "with_pieces": True}),
        Case("detokenize", "/detokenize", {"tokens": [39, 68, 75, 75, 78]}),
        Case("apply_template", "/apply-template", {"messages": [{"role": "user", "content": "Hello"}]}),
        Case("props", "/props"),
        Case("slots", "/slots"),
        Case("models", "/v1/models"),
        Case("health", "/health"),
        Case("metrics", "/metrics"),
        Case("lora_adapters", "/lora-adapters"),
        Case("responses", "/v1/responses", respond(HELLO)),
        Case("responses_stream", "/v1/responses", respond(HELLO, **STREAMED)),
        Case("responses_length", "/v1/responses", respond(HELLO, max_output_tokens=3)),
        Case("responses_input_tokens", "/v1/responses/input_tokens", respond(HELLO)),
        Case("messages", "/v1/messages", chat(HELLO)),
        Case("messages_stream", "/v1/messages", chat(HELLO, **STREAMED)),
        Case("messages_length", "/v1/messages", chat(HELLO, max_tokens=3)),
        Case("messages_stop", "/v1/messages", chat(HELLO, stop_sequences=[" demo"])),
        Case("count_tokens", "/v1/messages/count_tokens", chat(HELLO)),
        Case("error_context", CHAT, chat("llama " * 400)),
        Case("error_context_stream", CHAT, chat("llama " * 400, **STREAMED)),
        Case("error_context_messages", "/v1/messages", chat("llama " * 400)),
        Case("error_not_json", CHAT, b'{"messages": ['),
        Case("error_messages_missing", CHAT, {"model": "m"}),
        Case("error_messages_missing_anthropic", "/v1/messages", {"model": "m", "max_tokens": 4}),
        Case("error_field_type", CHAT, chat(HELLO, max_tokens="many")),
        Case("error_image", CHAT, chat("", messages=[
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": PIXEL}}]}])),
        Case("error_too_many_choices", CHAT, chat(HELLO, n=3)),
        Case("error_top_logprobs", CHAT, chat(HELLO, top_logprobs=2)),
        Case("error_grammar", CHAT, chat(HELLO, grammar="root ::= nothing")),
        Case("error_path", "/v1/nothing", {}),
        Case("error_embeddings_off", "/v1/embeddings", {"model": "m", "input": "Hello"}),
        Case("error_reranking_off", "/v1/rerank", {"model": "m", "query": "q", "documents": ["a"]}),
        Case("error_infill_off", "/infill", {"input_prefix": "a", "input_suffix": "b"}),
        Case("error_transcription_off", "/v1/audio/transcriptions", SPEECH,
             {"content-type": f"multipart/form-data; boundary={FORM}"}),
        Case("error_previous_response", "/v1/responses", respond(HELLO, previous_response_id="resp_1")),
    ],
    "scripted": [
        Case("tool_call", CHAT, chat("the weather", **FORCED)),
        Case("tool_call_stream", CHAT, chat("the weather", **FORCED, **STREAMED)),
        Case("tool_call_stream_usage", CHAT, chat("the weather", **FORCED, **COUNTED)),
        Case("tool_calls", CHAT, chat("the weather twice", max_tokens=96, **TWICE)),
        Case("tool_calls_stream", CHAT, chat("the weather twice", max_tokens=96, **TWICE, **STREAMED)),
        Case("tool_result", CHAT, chat("", messages=AFTER_CALL, tools=TOOLS)),
        Case("thinking", CHAT, chat("think")),
        Case("thinking_stream", CHAT, chat("think", **STREAMED)),
        Case("thinking_length", CHAT, chat("think", max_tokens=4)),
        Case("thinking_off", CHAT, chat("think", chat_template_kwargs={"enable_thinking": False})),
        Case("json_schema", CHAT, chat("json", response_format={
            "type": "json_schema", "json_schema": {"name": "town", "schema": TOWN}})),
        Case("json_object", CHAT, chat("json", response_format={"type": "json_object"})),
        Case("infill", "/infill", {**GAP, **STEADY}),
        Case("infill_stream", "/infill", {**GAP, **STREAMED}),
        Case("responses_tool_call", "/v1/responses", respond("the weather", tools=FLAT_TOOLS)),
        Case("responses_tool_call_stream", "/v1/responses", respond("the weather", tools=FLAT_TOOLS, **STREAMED)),
        Case("responses_thinking", "/v1/responses", respond("think")),
        Case("responses_thinking_stream", "/v1/responses", respond("think", **STREAMED)),
        Case("messages_tool_use", "/v1/messages", chat("the weather", tools=ANTHROPIC_TOOLS)),
        Case("messages_tool_use_stream", "/v1/messages", chat("the weather", tools=ANTHROPIC_TOOLS, **STREAMED)),
        Case("messages_two_tools_stream", "/v1/messages",
             chat("the weather twice", max_tokens=96, tools=ANTHROPIC_TOOLS, **STREAMED)),
        Case("messages_thinking", "/v1/messages", chat("think", thinking={"type": "enabled", "budget_tokens": 32})),
        Case("messages_thinking_stream", "/v1/messages",
             chat("think", thinking={"type": "enabled", "budget_tokens": 32}, **STREAMED)),
        Case("props_tools", "/props"),
    ],
    "embedding": [
        Case("embeddings", "/v1/embeddings", {"model": "m", "input": "Hello"}),
        Case("embeddings_two", "/v1/embeddings", {"model": "m", "input": ["Hello", "llamas"]}),
        Case("embeddings_base64", "/v1/embeddings", {"model": "m", "input": "Hello", "encoding_format": "base64"}),
        Case("embedding_native", "/embedding", {"content": "Hello"}),
        Case("error_embeddings_too_long", "/v1/embeddings", {"model": "m", "input": "llamas " * 20}),
        Case("embeddings_empty", "/v1/embeddings", {"model": "m", "input": ""}),
    ],
    "reranking": [
        Case("rerank", "/v1/rerank", {"model": "m", "query": "llama", "documents": ["llamas", "Paris"], "top_n": 2}),
        Case("rerank_texts", "/rerank", {"model": "m", "query": "llama", "texts": ["llamas", "Paris"]}),
    ],
    "with_key": [
        Case("error_key", CHAT, chat(HELLO), {"authorization": "Bearer another"}),
    ],
}  # fmt: skip

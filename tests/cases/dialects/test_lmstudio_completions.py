"""LM Studio's v0: OpenAI's answers, with figures added and nothing else changed."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.golden import cut, golden
from llamaherd_gateway.dialects.dialect import Asked, Call, Facts, Turn
from llamaherd_gateway.dialects.lmstudio import ROUTES
from llamaherd_gateway.dialects.lmstudio.figures import FiguresAnswer
from llamaherd_gateway.problems import BadRequest, Problem

FACTS = Facts(model="m", architecture="llama", quantization="Q4_K_M", context_tokens=512)
TURN = Turn(request_id="0f", received_ns=0)
STREAM = golden("chat_stream_usage.sse")
# As llama-server streams /v1/completions when it is asked to be verbose.
VERBOSE = (
    b'data: {"choices":[{"text":" a \\"timings\\"","index":0,"logprobs":null,"finish_reason":null}],"model":"m",'
    b'"id":"c","__verbose":{"index":0,"content":" a","tokens":[1],"stop":false}}\n\n'
    b'data: {"choices":[{"text":"","index":0,"logprobs":null,"finish_reason":"length"}],"model":"m",'
    b'"system_fingerprint":"b1","id":"c","__verbose":{"stop_type":"limit","truncated":true},'
    b'"timings":{"cache_n":0,"prompt_n":5,"prompt_ms":250.0,"predicted_n":3,"predicted_ms":500.0,'
    b'"predicted_per_second":6.0,"draft_n":8,"draft_n_accepted":5}}\n\ndata: [DONE]\n\n'
)


def chunks(data: bytes) -> list[dict[str, Any]]:
    records = data.split(b"\n\n")
    assert records.pop() == b""
    return [json.loads(record.removeprefix(b"data: ")) for record in records if record != b"data: [DONE]"]


def translate(*pieces: bytes) -> bytes:
    answer = FiguresAnswer(FACTS, stream=True)
    return b"".join([*(answer.feed(piece, 0) for piece in pieces), answer.end(0)])


def with_stop(stop_type: str, *, truncated: bool = False, finish: str = "stop") -> str:
    """`stop_reason` of a plain answer that stopped so."""
    answer = json.loads(golden("chat.json"))
    answer["choices"][0]["finish_reason"] = finish
    if stop_type:
        answer["__verbose"] = {"stop_type": stop_type, "truncated": truncated}
    told = json.loads(FiguresAnswer(FACTS, stream=False).whole(json.dumps(answer).encode(), 0))
    assert "__verbose" not in told
    reason: str = told["stats"]["stop_reason"]
    return reason


def ask(path: str, body: bytes) -> tuple[Asked, Call]:
    route = next(route for route in ROUTES if route.path == path)
    assert route.call is not None
    asked = route.read(body, ())
    return asked, route.call(asked, FACTS, TURN)


def test_the_body_is_passed_on_as_it_was_written_without_what_is_not_llama_servers() -> None:
    body = b'{"model":"m","messages":[{"role":"user"}],"max_tokens":-1,"top_p":0.10,"ttl":9,"draft_model":"d","x":[1]}'
    asked, call = ask("/api/v0/chat/completions", body)
    assert (asked.model, asked.stream, asked.keep_alive_s) == ("m", False, 9)
    assert call.path == "/v1/chat/completions"
    assert call.body == (
        b'{"model":"m","messages":[{"role":"user"}],"max_tokens":-1,"top_p":0.10,"x":[1],'
        b'"verbose":true,"response_fields":["stop_type","truncated"]}'
    )


def test_embeddings_are_openais() -> None:
    asked, call = ask("/api/v0/embeddings", b'{"model":"m","input":"x","ttl":5}')
    assert (call.path, call.body, call.translation) == ("/v1/embeddings", b'{"model":"m","input":"x"}', None)
    assert asked.keep_alive_s == 5


def test_what_cannot_be_meant_is_refused() -> None:
    for body, param in ((b'{"model":"m","messages":[]}', "messages"), (b'{"messages":[{}]}', "model")):
        with pytest.raises(BadRequest) as caught:
            ask("/api/v0/chat/completions", body)
        assert caught.value.param == param
    with pytest.raises(BadRequest, match="`ttl`"):
        ask("/api/v0/completions", b'{"model":"m","prompt":"x","ttl":-5}')


def test_the_name_that_was_asked_for_comes_back() -> None:
    body = b'{"model":"alias","messages":[{"role":"user"}],"stream":true}'
    _, call = ask("/api/v0/chat/completions", body)
    said = b'data: {"choices":[{"finish_reason":"stop"}],"model":"m","timings":{"prompt_ms":1}}\n\ndata: [DONE]\n\n'
    told = call.translation.feed(said, 0) + call.translation.end(0)
    assert chunks(told)[0]["model"] == "alias"
    assert chunks(told)[0]["stats"]["time_to_first_token"] == 0.001
    assert told.endswith(b"data: [DONE]\n\n")


def test_answers_that_openais_dialect_makes_itself_get_figures_too() -> None:
    options = b'"stream":true,"logprobs":1,"stream_options":{"include_usage":true}'
    _, call = ask("/api/v0/completions", b'{"model":"m","prompt":["a","b"],%b}' % options)
    assert (call.path, b"verbose" in call.body) == ("/completion", False)
    said = golden("completion_probabilities_stream.sse")
    *others, last = chunks(call.translation.feed(said, 0) + call.translation.end(0))
    assert last["usage"]["completion_tokens"] > 0
    assert last["stats"]["generation_time"] > 0
    assert last["stats"]["stop_reason"] == "maxPredictedTokensReached"
    assert not any("stats" in chunk for chunk in others)

    _, call = ask("/api/v0/completions", b'{"model":"m","prompt":["a","b"],"logprobs":1}')
    told = json.loads(call.translation.whole(golden("completion_stop.json"), 0))
    assert told["object"] == "text_completion"
    assert told["stats"]["stop_reason"] == "stopStringFound"


def test_a_plain_answer_gets_its_figures_behind_what_openai_says() -> None:
    body = golden("chat.json")
    given = json.loads(body)
    told = json.loads(FiguresAnswer(FACTS, stream=False).whole(body, 0))
    stats = told.pop("stats")
    assert told.pop("model_info") == {"arch": "llama", "quant": "Q4_K_M", "format": "gguf", "context_length": 512}
    assert told.pop("runtime")["supported_formats"] == ["gguf"]
    assert told == given
    assert stats["tokens_per_second"] == given["timings"]["predicted_per_second"]
    assert stats["time_to_first_token"] == pytest.approx(given["timings"]["prompt_ms"] / 1e3)


def test_a_stream_passes_as_it_is_but_for_its_last_chunk() -> None:
    told, said = chunks(translate(STREAM)), chunks(STREAM)
    assert told[:-1] == said[:-1]
    assert told[-1].pop("stats")["stop_reason"] == "eosFound"
    assert told[-1].pop("model_info")
    assert told[-1].pop("runtime")
    assert told[-1] == said[-1]
    assert translate(STREAM).endswith(b"data: [DONE]\n\n")


def test_a_verbose_stream_tells_why_it_stopped_and_keeps_it_to_itself() -> None:
    first, last = chunks(translate(VERBOSE))
    assert first == {
        "choices": [{"text": ' a "timings"', "index": 0, "logprobs": None, "finish_reason": None}],
        "model": "m",
        "id": "c",
    }
    assert "__verbose" not in last
    assert last["stats"] == {
        "tokens_per_second": 6.0,
        "time_to_first_token": 0.25,
        "generation_time": 0.5,
        "stop_reason": "contextLengthReached",
        "total_draft_tokens_count": 8,
        "accepted_draft_tokens_count": 5,
        "rejected_draft_tokens_count": 3,
    }
    assert last["runtime"] == {"name": "llama.cpp", "version": "b1", "supported_formats": ["gguf"]}


@settings(max_examples=40)
@given(st.sampled_from([STREAM[:3000], STREAM[-3000:], VERBOSE]), st.lists(st.integers(0, 10**6), max_size=20))
def test_any_split_of_the_bytes_gives_the_same_stream(data: bytes, places: list[int]) -> None:
    assert translate(*cut(data, places)) == translate(data)


def test_the_reason_to_stop_has_lm_studios_word() -> None:
    assert with_stop("eos") == "eosFound"
    assert with_stop("word") == "stopStringFound"
    assert with_stop("limit", finish="length") == "maxPredictedTokensReached"
    assert with_stop("limit", truncated=True, finish="length") == "contextLengthReached"
    assert with_stop("eos", finish="tool_calls") == "toolCalls"
    assert with_stop("", finish="length") == "maxPredictedTokensReached"


def test_errors_in_a_stream_are_openais() -> None:
    said = b'data: {"error":{"code":400,"message":"too long","type":"exceed_context_size_error"}}\n\n'
    (told,) = chunks(translate(said))
    assert told["error"]["code"] == "context_length_exceeded"
    answer = FiguresAnswer(FACTS, stream=True)
    said = b'data: {"choices":[{"finish_reason":"stop"}]}\n\n'
    last, failed = chunks(answer.feed(said, 0) + answer.fail(Problem(status=502, message="gone"), 0))
    assert "stats" not in last
    assert failed["error"]["message"] == "gone"


@pytest.mark.parametrize("body", [b"", b"[]", b"<html>", b'{"choices":5}'])
def test_an_answer_that_makes_no_sense_is_an_error(body: bytes) -> None:
    with pytest.raises(ValueError, match="llama-server's answer"):
        FiguresAnswer(FACTS, stream=False).whole(body, 0)


def test_what_is_no_chunk_is_left_to_the_client() -> None:
    assert translate(b'data: "timings" {\n\n:\n\n') == b'data: "timings" {\n\n'

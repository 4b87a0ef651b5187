"""Text completions: one prompt passes through; several, `suffix`, `echo` and `logprobs` are answered as OpenAI did."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.golden import cut, events, golden
from llamaherd_gateway.dialects.dialect import Call, Facts, Turn
from llamaherd_gateway.dialects.openai.completions import call_completion, read_completion
from llamaherd_gateway.problems import BadRequest, Problem

FACTS = Facts(model="cria", slots=2, capabilities=frozenset({"completion", "insert"}))
TURN = Turn(request_id="ab" * 8, received_ns=1_700_000_000_000_000_000)


def call(facts: Facts = FACTS, **fields: Any) -> Call:
    body = json.dumps({"model": "cria", "prompt": "Once", **fields}).encode()
    return call_completion(read_completion(body), facts, TURN)


def refusal(**fields: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        call(**fields)
    return caught.value


def whole(body: bytes, **fields: Any) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(call(**fields).translation.whole(body, 0))
    return answer


@pytest.mark.parametrize(
    "fields",
    [{}, {"prompt": [1, 2]}, {"prompt": ["Once"]}, {"suffix": "", "echo": False, "best_of": 1, "n": 1}],
)
def test_one_prompt_is_passed_on_byte_for_byte(fields: dict[str, Any]) -> None:
    body = json.dumps({"model": "cria", "prompt": "Once", **fields}, indent=1).encode()
    passed = call_completion(read_completion(body), FACTS, TURN)
    assert (passed.path, passed.translation) == ("/v1/completions", None)
    assert passed.body is body
    aliased = read_completion(body.replace(b'"cria"', b'"gpt"'))
    assert b'"model":"gpt"' in call_completion(aliased, FACTS, TURN).translation.whole(
        golden("text_completion.json"), 0
    )


@pytest.mark.parametrize("prompt", [None, "missing", "", [], [[]]])
def test_nothing_cannot_go_on(prompt: Any) -> None:
    body = json.dumps({"model": "m"} if prompt == "missing" else {"model": "m", "prompt": prompt})
    if prompt in ("", [[]]):
        read_completion(body.encode())  # llama-server knows best: some models begin with a token of their own
    else:
        with pytest.raises(BadRequest):
            read_completion(body.encode())


def test_text_before_a_suffix_is_inserted() -> None:
    asked = call(prompt="def add", suffix="end", max_tokens=8)
    body = json.loads(asked.body)
    assert asked.path == "/infill"
    assert (body["input_prefix"], body["input_suffix"], body["max_tokens"]) == ("def add", "end", 8)
    assert not {"prompt", "suffix"} & body.keys()
    answer = json.loads(asked.translation.whole(golden("infill.json"), 0))
    assert answer["choices"] == [{"text": "    return a + b", "index": 0, "logprobs": None, "finish_reason": "stop"}]
    assert answer["id"] == "cmpl-" + "ab" * 8
    assert answer["created"] == 1_700_000_000


def test_a_model_that_cannot_insert_says_so() -> None:
    with pytest.raises(BadRequest, match="cannot insert"):
        call(Facts(model="cria"), suffix="end")
    assert refusal(suffix="end", prompt=["a", "b"]).param == "suffix"
    assert refusal(suffix="end", prompt=[1, 2]).param == "suffix"


def test_tokens_of_all_prompts_are_counted() -> None:
    first, second = json.loads(golden("completion.json")), json.loads(golden("completion.json"))
    second["index"] = 1
    answer = whole(json.dumps([second, first]).encode(), prompt=["Once", "Once"])

    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert answer["usage"]["prompt_tokens"] == 2 * first["tokens_evaluated"]
    assert answer["usage"]["completion_tokens"] == 2 * first["tokens_predicted"]
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"length"}


def test_a_prompt_with_several_answers_is_counted_once() -> None:
    first = json.loads(golden("completion.json"))
    answer = whole(json.dumps([first, {**first, "index": 1}]).encode(), n=2)
    assert answer["usage"]["prompt_tokens"] == first["tokens_evaluated"]
    assert refusal(n=3).param == "n"


def test_probabilities_have_the_layout_of_old() -> None:
    asked = call(logprobs=2, max_tokens=2)
    assert json.loads(asked.body)["n_probs"] == 2
    (choice,) = json.loads(asked.translation.whole(golden("completion_probabilities.json"), 0))["choices"]
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == choice["text"]
    assert logprobs["text_offset"] == [0, len(logprobs["tokens"][0])]
    assert [len(top) for top in logprobs["top_logprobs"]] == [2, 2]
    assert all(value <= 0 for value in logprobs["token_logprobs"])


def test_probabilities_without_alternatives_are_told_alone() -> None:
    asked = call(logprobs=0)
    assert json.loads(asked.body)["n_probs"] == 1
    (choice,) = json.loads(asked.translation.whole(golden("completion_probabilities.json"), 0))["choices"]
    assert choice["logprobs"]["top_logprobs"] is None
    assert len(choice["logprobs"]["token_logprobs"]) == 2


def test_an_echo_comes_first_and_once() -> None:
    stream = call(echo=True, stream=True).translation
    out = stream.feed(golden("completion_stream.sse"), 0) + stream.end(0)
    texts = [content["choices"][0]["text"] for _, content in events(out) if content != "[DONE]"]
    assert "".join(texts) == "Once" + json.loads(golden("completion.json"))["content"]
    assert whole(golden("completion.json"), echo=True)["choices"][0]["text"] == "".join(texts)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"echo": True, "suffix": "x"}, "echo"),
        ({"echo": True, "prompt": [1, 2]}, "echo"),
        ({"best_of": 3}, "best_of"),
        ({"n": 0}, "n"),
        ({"n": "2"}, "n"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
    ],
)
def test_what_cannot_be_done_is_refused_and_named(fields: dict[str, Any], param: str) -> None:
    assert refusal(**fields).param == param


@settings(max_examples=30)
@given(st.lists(st.integers(0, 10_000), max_size=8))
def test_however_a_stream_is_cut_it_reads_the_same(places: list[int]) -> None:
    options = {"stream": True, "logprobs": 2, "stream_options": {"include_usage": True}}
    at_once, in_pieces = call(**options).translation, call(**options).translation
    body = golden("completion_probabilities_stream.sse")

    expected = at_once.feed(body, 0) + at_once.end(0)
    sent = [in_pieces.feed(piece, 0) for piece in cut(body, places)]

    assert b"".join(sent) + in_pieces.end(0) == expected
    *chunks, usage, done = [content for _, content in events(expected)]
    assert done == "[DONE]"
    assert usage["usage"]["completion_tokens"] == 2
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "length"]
    plain = whole(golden("completion_probabilities.json"), logprobs=2)["choices"][0]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == plain["text"]
    told = [chunk["choices"][0]["logprobs"] for chunk in chunks if chunk["choices"][0]["logprobs"]]
    assert [offset for logprobs in told for offset in logprobs["text_offset"]] == plain["logprobs"]["text_offset"]


def test_what_llama_server_says_between_two_prompts_is_skipped() -> None:
    translation = call(prompt=["a", "b"], stream=True).translation
    assert translation.feed(b"data: null\n\n: ping\n\ndata: [1]\n\n", 0) == b""


def test_an_error_in_mid_stream_is_the_last_word() -> None:
    translation = call(logprobs=1, stream=True).translation
    out = translation.feed(b'data: {"error":{"code":500,"message":"decode failed"}}\n\ndata: {"content":"x"}\n\n', 0)
    assert b"decode failed" in out
    assert b'"text":"x"' not in out
    assert translation.end(0) + translation.fail(Problem(status=502, message="m"), 0) == b""


def test_an_answer_that_makes_no_sense_is_a_value_error() -> None:
    for body in (b"", b"null", b'{"content": 5}', b"[1]"):
        with pytest.raises(ValueError):  # noqa: PT011 # the contract names the type alone
            whole(body, logprobs=1)

"""Tokens and timings are found in real answers."""

import json

from harness.answers import CHUNK, FOUND, PLAIN, STREAM, TIMINGS, USAGE, usage_of
from llamaherd_gateway.relay.usage import HEAD_BYTES, TAIL_BYTES, Tail, Usage


def test_a_stream_without_usage_is_counted_from_its_timings() -> None:
    assert usage_of(STREAM) == FOUND


def test_a_plain_answer_has_both() -> None:
    assert usage_of(PLAIN) == FOUND


def test_a_stream_with_usage_takes_the_last_chunk() -> None:
    chunk = b'data: {"choices":[],' + USAGE + b"," + TIMINGS + b"}\n\ndata: [DONE]\n\n"
    assert usage_of(CHUNK, chunk) == FOUND


def test_timings_on_every_chunk_count_once_the_last_ones() -> None:
    early = b'data: {"timings":{"cache_n":0,"prompt_n":28,"predicted_n":1,"predicted_ms":0.1}}\n\n'
    assert usage_of(early * 5, STREAM) == FOUND


def test_embeddings_say_usage_first() -> None:
    head = b'{"model":"m","object":"list","usage":{"prompt_tokens":7,"total_tokens":7},"data":[{"embedding":['
    assert usage_of(head, b"0.123456," * 50_000, b"0.1]}]}") == Usage(prompt_tokens=7)


def test_transcriptions_count_input_and_output() -> None:
    usage = b'{"type":"tokens","input_tokens":81,"output_tokens":8,"input_tokens_details":{"cached_tokens":11}}'
    counted = Usage(prompt_tokens=81, cached_tokens=11, completion_tokens=8)

    assert usage_of(b'{"type":"transcript.text.done","text":"Hm.","usage":' + usage + b"}") == counted


def test_pretty_printed_json_is_read_too() -> None:
    assert usage_of(json.dumps(json.loads(PLAIN), indent=2).encode()) == FOUND


def test_text_about_timings_is_not_taken_for_timings() -> None:
    text = json.dumps({"content": 'the "timings":{"predicted_n":99} and "usage":{"prompt_tokens":9}', "timings": 3})
    assert usage_of(text.encode()) == Usage()


def test_an_answer_cut_off_in_its_timings_says_nothing() -> None:
    assert usage_of(STREAM[: STREAM.index(b"predicted_n")]) == Usage()


def test_memory_is_bounded() -> None:
    tail = Tail()
    for _ in range(1000):
        tail.feed(b"x" * 10_000)
    assert sum(len(part) for part in tail._parts) <= 5 * TAIL_BYTES
    assert len(tail._head) == HEAD_BYTES

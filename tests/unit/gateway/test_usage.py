"""Tokens and timings are found in real answers, however the bytes arrive."""

import json
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from llamaherd_gateway.relay.usage import HEAD_BYTES, TAIL_BYTES, Tail, Usage

TIMINGS = (
    b'"timings":{"cache_n":27,"prompt_n":1,"prompt_ms":148.659,"prompt_per_token_ms":148.659,'
    b'"prompt_per_second":6.7,"predicted_n":3,"predicted_ms":0.38,"predicted_per_token_ms":0.19}'
)
USAGE = (
    b'"usage":{"completion_tokens":3,"prompt_tokens":28,"total_tokens":31,"prompt_tokens_details":{"cached_tokens":27}}'
)
CHUNK = b'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"content":"\\"timings\\":{"}}],"id":"c"}\n\n'
STREAM = CHUNK * 3 + b'data: {"choices":[{"finish_reason":"length","delta":{}}],' + TIMINGS + b"}\n\ndata: [DONE]\n\n"
PLAIN = b'{"choices":[{"message":{"content":"a } b"}}],' + USAGE + b',"id":"x",' + TIMINGS + b"}"
FOUND = Usage(prompt_tokens=28, cached_tokens=27, completion_tokens=3, prompt_ms=148.659, completion_ms=0.38)


def usage_of(*pieces: bytes) -> Usage:
    tail = Tail()
    for piece in pieces:
        tail.feed(piece)
    return tail.usage()


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(ends)]


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


@settings(max_examples=40)
@given(st.lists(st.integers(0, 10**6), max_size=30), st.integers(0, 40))
def test_any_split_of_the_bytes_gives_the_same_usage(places: list[int], chunks: int) -> None:
    data = CHUNK * (chunks * 4) + STREAM
    assert usage_of(*cut(data, places)) == usage_of(data) == FOUND


@settings(max_examples=40)
@given(st.lists(st.integers(0, 10**6), max_size=30), st.binary(max_size=TAIL_BYTES // 4).map(lambda part: part * 8))
def test_any_split_of_any_bytes_gives_the_same_result(places: list[int], noise: bytes) -> None:
    data = noise + b'"usage":{' + noise[:40] + PLAIN + noise
    assert usage_of(*cut(data, places)) == usage_of(data)

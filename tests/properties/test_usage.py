"""What an answer used is found, however its bytes are cut."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from harness.answers import CHUNK, FOUND, PLAIN, STREAM, usage_of
from llamaherd_gateway.relay.usage import TAIL_BYTES

PLACES = st.lists(st.integers(0, 10**6), max_size=30)
NOISE = st.binary(max_size=TAIL_BYTES // 4).map(lambda part: part * 8)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(ends)]


@settings(max_examples=500, deadline=None)
@given(PLACES, st.integers(0, 40))
def test_any_split_of_the_bytes_gives_the_same_usage(places: list[int], chunks: int) -> None:
    data = CHUNK * (chunks * 4) + STREAM

    assert usage_of(*cut(data, places)) == usage_of(data) == FOUND


@settings(max_examples=500, deadline=None)
@given(PLACES, NOISE)
def test_any_split_of_any_bytes_gives_the_same_result(places: list[int], noise: bytes) -> None:
    data = noise + b'"usage":{' + noise[:40] + PLAIN + noise

    assert usage_of(*cut(data, places)) == usage_of(data)

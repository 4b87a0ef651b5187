"""Heads of spoilt GGUF files."""

import contextlib
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.random_gguf import write_random_gguf
from llamaherd_supervisor.gguf_file import UnreadableGguf, parse_gguf

LAST_TENSOR = b"output.weight"
"""In the table of tensors 32 bytes follow the name: two dimensions, type and offset."""


def parse(data: bytes) -> None:
    parse_gguf(io.BytesIO(data), size_bytes=len(data))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_random_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf", layers=1, width=32).read_bytes()


@settings(max_examples=2000, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=4))
def test_file_with_flipped_bytes_is_read_or_refused_but_never_worse(whole: bytes, flips: list[tuple[int, int]]) -> None:
    head_bytes = whole.rindex(LAST_TENSOR) + len(LAST_TENSOR) + 32
    data = bytearray(whole)
    for place, byte in flips:
        data[place % head_bytes] = byte

    with contextlib.suppress(UnreadableGguf):
        parse(bytes(data))


def test_every_shortened_file_is_refused_as_truncated(whole: bytes) -> None:
    for size in [*range(0, 64), *range(64, len(whole) - 1, 97), len(whole) - 1]:
        with pytest.raises(UnreadableGguf) as caught:
            parse(whole[:size])
        assert caught.value.truncated, (size, str(caught.value))

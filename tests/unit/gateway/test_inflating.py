"""Request bodies that arrive compressed."""

import gzip
import zlib

import pytest

from llamaherd_gateway.problems import BadRequest
from llamaherd_gateway.relay.inflating import inflate, is_inflatable


@pytest.mark.parametrize(
    ("encoding", "packed"), [(b"gzip", gzip.compress(b"{}", mtime=0)), (b"deflate", zlib.compress(b"{}"))]
)
def test_a_packed_body_is_unpacked(encoding: bytes, packed: bytes) -> None:
    assert inflate(packed, encoding, limit=10) == b"{}"


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    with pytest.raises(BadRequest, match="larger than 1000 bytes once unpacked") as caught:
        inflate(gzip.compress(bytes(10**6)), b"gzip", limit=1000)
    assert caught.value.status == 413


@pytest.mark.parametrize("body", [b"", b"plain", gzip.compress(b"x" * 100, mtime=0)[:-9]])
def test_what_is_no_such_data_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest, match="not valid gzip"):
        inflate(body, b"gzip", limit=1000)


def test_what_can_be_unpacked_is_known_beforehand() -> None:
    assert is_inflatable(b"identity")
    assert not is_inflatable(b"zstd")
    assert not is_inflatable(b"br")

"""What an API key looks like."""

from hypothesis import given, settings
from hypothesis import strategies as st

from llamaherd_shared.api_key import (
    hash_secret,
    parse_id,
    parse_key,
    render_id,
    render_key,
    render_prefix,
    render_secret,
)
from llamaherd_shared.events.usage import GatewayUsage, KeyUsage, decode_usage, encode_usage
from llamaherd_shared.subjects import Subjects


@settings(max_examples=30)
@given(st.binary(min_size=5, max_size=5), st.binary(min_size=32, max_size=32))
def test_any_random_bytes_make_a_key_that_is_read_again(id_bytes: bytes, secret_bytes: bytes) -> None:
    key_id, secret = render_id(id_bytes), render_secret(secret_bytes)

    key = render_key(key_id, secret)

    assert parse_key(key) == (key_id, secret)
    assert len(key) == 4 + 8 + 1 + 43
    assert Subjects("herd").access(key_id) == f"herd.ev.access.{key_id}"
    assert [parse_id(text) for text in (key_id, render_prefix(key_id), key)] == [key_id] * 3


def test_what_is_no_id_is_none() -> None:
    assert [parse_id(text) for text in ("", "llh_", "laptop", "k7q2mzxa8", "K7Q2MZXA", "../../ab")] == [None] * 6


def test_the_hash_does_not_hold_the_secret() -> None:
    secret = render_secret(b"s" * 32)

    assert len(hash_secret(secret)) == 64
    assert secret not in hash_secret(secret)


def test_usage_comes_back_from_the_wire_and_ignores_fields_from_the_future() -> None:
    usage = GatewayUsage("g1", [KeyUsage("k7q2mzxa", 9, 8, 700, 5, 400, 256, 1)])

    assert decode_usage(encode_usage(usage)) == usage
    assert Subjects("herd").usage("g.1") == "herd.usage.g=2E1"


def test_usage_of_a_newer_gateway_is_read() -> None:
    usage = GatewayUsage("g1", [KeyUsage("k7q2mzxa", 9, 8, 700, 5, 400, 256, 1)])

    # MessagePack: the array of 8 becomes one of 9.
    newer = encode_usage(usage).replace(b"\x98\xa8k7q2mzxa", b"\x99\xa8k7q2mzxa")
    newer = newer.replace(b"\xa6models", b"\x07\xa6models")

    assert decode_usage(newer) == usage

"""What an API key looks like."""

from llamaherd_shared.api_key import hash_secret, parse_id, render_secret
from llamaherd_shared.events.usage import GatewayUsage, KeyUsage, decode_usage, encode_usage
from llamaherd_shared.subjects import Subjects


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

"""Keys are read again as they were written, and nothing else is taken for one."""

from hypothesis import given, settings
from hypothesis import strategies as st

from llamaherd_gateway.access.keys import Keyring, credential_of, evolve_keys, identify
from llamaherd_shared.api_key import (
    hash_secret,
    parse_id,
    parse_key,
    render_id,
    render_key,
    render_prefix,
    render_secret,
)
from llamaherd_shared.events.access import KeyCreated
from llamaherd_shared.subjects import Subjects

ID = render_id(b"12345")
KEYRING = evolve_keys(
    Keyring(),
    KeyCreated(
        key=ID,
        at_ns=1,
        name="laptop",
        prefix=render_prefix(ID),
        secret_sha256=hash_secret(render_secret(b"s" * 32)),
        expires_ns=1000,
    ),
)


@settings(max_examples=500, deadline=None)
@given(st.binary(min_size=5, max_size=5), st.binary(min_size=32, max_size=32))
def test_any_random_bytes_make_a_key_that_is_read_again(id_bytes: bytes, secret_bytes: bytes) -> None:
    key_id, secret = render_id(id_bytes), render_secret(secret_bytes)

    key = render_key(key_id, secret)

    assert parse_key(key) == (key_id, secret)
    assert len(key) == 4 + 8 + 1 + 43
    assert Subjects("herd").access(key_id) == f"herd.ev.access.{key_id}"
    assert [parse_id(text) for text in (key_id, render_prefix(key_id), key)] == [key_id] * 3


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=60), st.binary(max_size=60))
def test_any_bytes_in_credential_headers_are_read_or_passed_over(first: bytes, second: bytes) -> None:
    credential = credential_of([(b"authorization", first), (b"x-api-key", second)])

    assert identify(KEYRING, credential, 10, required=False) is None

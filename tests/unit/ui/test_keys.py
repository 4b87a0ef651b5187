"""What kind of key may be asked for."""

import re
from typing import Any

import msgspec
import pytest

from llamaherd_shared.api_key import hash_secret, render_id, render_key, render_secret
from llamaherd_shared.errors import NotFound, Rejected
from llamaherd_shared.events import encode_event
from llamaherd_shared.events.access import KeyLimits, KeyRevoked
from llamaherd_ui.keys import NewKey, NewLimits, decide_created, decide_revoked
from llamaherd_ui.projection import AccessKey, Entity, evolve
from llamaherd_ui.views import KeyUse, render_api_key, render_created

ID, SECRET = render_id(b"12345"), render_secret(b"s" * 32)


def created(**fields: Any) -> AccessKey:
    key = evolve(None, decide_created(NewKey(**{"name": "laptop"} | fields), key_id=ID, secret=SECRET, now_ns=10))
    assert isinstance(key, AccessKey)
    return key


def entities(key: AccessKey) -> dict[str, Entity]:
    return {f"key/{key.key}": key}


def test_the_fact_holds_the_hash_and_not_the_key() -> None:
    asked = NewKey(name=" laptop ", models=["cria", "llama-*", "cria"], dialects=["ollama"], expires_s=1.5)

    event = decide_created(asked, key_id=ID, secret=SECRET, now_ns=10)

    assert (event.name, event.prefix, event.models) == ("laptop", f"llh_{ID}", ["cria", "llama-*"])
    assert event.expires_ns == 10 + 1_500_000_000
    assert event.secret_sha256 == hash_secret(SECRET)
    assert SECRET.encode() not in encode_event(event)


def test_limits_are_taken_over() -> None:
    assert created(limits=NewLimits(requests_per_minute=60, concurrency=2)).limits == KeyLimits(
        requests_per_minute=60, concurrency=2
    )


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": " "}, "`name`"),
        ({"name": "x" * 101}, "`name`"),
        ({"name": "a\nb"}, "`name`"),
        ({"models": [""]}, "`models`"),
        ({"models": ["m"] * 101}, "`models`"),
        ({"dialects": ["openia"]}, "openai, anthropic, ollama, lmstudio, llama"),
        ({"expires_s": 0.0}, "`expires_s`"),
        ({"expires_s": float("nan")}, "`expires_s`"),
        ({"expires_s": 1e18}, "`expires_s`"),
        ({"limits": NewLimits(tokens_per_minute=-1)}, "`limits.tokens_per_minute`"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_field(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(Rejected, match=re.escape(said)):
        created(**fields)


@pytest.mark.parametrize("body", [b'{"name":"a","model":["x"]}', b'{"name":"a","limits":{"request_per_minute":1}}'])
def test_a_mistyped_restriction_is_refused_and_not_passed_over(body: bytes) -> None:
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.json.decode(body, type=NewKey)


def test_a_key_is_found_by_id_prefix_or_itself_and_ended_once() -> None:
    key = created()

    for text in (ID, f"llh_{ID}", render_key(ID, SECRET)):
        assert decide_revoked(entities(key), text, now_ns=20) == (key, KeyRevoked(key=ID, at_ns=20))
    ended = evolve(key, KeyRevoked(key=ID, at_ns=20))
    assert isinstance(ended, AccessKey)
    assert decide_revoked(entities(ended), ID, now_ns=30) == (ended, None)


def test_an_unknown_key_is_not_repeated() -> None:
    with pytest.raises(NotFound) as caught:
        decide_revoked({}, render_key(ID, SECRET), now_ns=1)

    assert ID not in caught.value.message


def test_state_follows_the_clock() -> None:
    key = created(expires_s=1.0)

    assert [render_api_key(key, KeyUse(), now_ns=at).state for at in (10, 2_000_000_000)] == ["active", "expired"]
    ended = evolve(key, KeyRevoked(key=ID, at_ns=20))
    assert isinstance(ended, AccessKey)
    assert render_api_key(ended, KeyUse(), now_ns=10).state == "revoked"


def test_only_the_answer_to_its_maker_holds_the_key() -> None:
    key = created()

    assert render_created(key, "llh_x", now_ns=10).key == "llh_x"
    assert b'"key"' not in msgspec.json.encode(render_api_key(key, KeyUse(), now_ns=10))

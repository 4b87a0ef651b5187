"""Whose request it is, and what its key may use."""

import base64

import pytest

from llamaherd_gateway.access.keys import (
    Key,
    Keyring,
    NoKey,
    NotAllowed,
    credential_of,
    evolve_keys,
    find_end,
    identify,
    keys_required,
    refuse_dialect,
    refuse_model,
    sees,
)
from llamaherd_gateway.dialects.openai import OPENAI
from llamaherd_gateway.problems import problem_of
from llamaherd_shared.api_key import hash_secret, parse_key, render_id, render_key, render_prefix, render_secret
from llamaherd_shared.events.access import DIALECTS, AccessEvent, KeyCreated, KeyRevoked
from llamaherd_shared.events.node import NodeLeft

ID = render_id(b"12345")
SECRET = render_secret(b"s" * 32)
KEY = render_key(ID, SECRET)
CREATED = KeyCreated(
    key=ID, at_ns=1, name="laptop", prefix=render_prefix(ID), secret_sha256=hash_secret(SECRET), expires_ns=1000
)
REVOKED = KeyRevoked(key=ID, at_ns=2)


def fold(*history: AccessEvent | NodeLeft) -> Keyring:
    keyring = Keyring()
    for event in history:
        keyring = evolve_keys(keyring, event)
    return keyring


def basic(text: str) -> bytes:
    return b"Basic " + base64.b64encode(text.encode())


def refusal(keyring: Keyring, credential: str | None, now_ns: int = 10) -> str:
    with pytest.raises(NoKey) as caught:
        identify(keyring, credential, now_ns, required=True)
    assert problem_of(caught.value).status == 401
    return caught.value.message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"authorization", b"Bearer " + KEY.encode()),
        (b"authorization", b"bearer  " + KEY.encode() + b" "),
        (b"authorization", KEY.encode()),
        (b"authorization", b"Token " + KEY.encode()),
        (b"authorization", basic(f"user:{KEY}")),
        (b"authorization", basic(f"{KEY}:")),
        (b"authorization", basic(KEY)),
        (b"x-api-key", KEY.encode()),
        (b"api-key", KEY.encode()),
        (b"x-goog-api-key", KEY.encode()),
    ],
)
def test_every_header_a_client_puts_its_key_into_is_read(name: bytes, value: bytes) -> None:
    assert credential_of([(b"host", b"x"), (name, value), (b"accept", b"*/*")]) == KEY


@pytest.mark.parametrize(
    "value", [b"", b"Bearer", b"Bearer ", b"Basic", b"Basic !!!", b"Basic " + base64.b64encode(b":")]
)
def test_a_header_without_anything_in_it_is_no_credential(value: bytes) -> None:
    assert credential_of([(b"authorization", value)]) is None
    assert credential_of([]) is None


def test_a_key_of_ours_wins_over_what_an_sdk_made_up() -> None:
    both = [(b"x-api-key", b"dummy"), (b"authorization", b"Bearer " + KEY.encode())]

    assert credential_of(both) == KEY
    assert credential_of(reversed(both)) == KEY
    assert credential_of([(b"x-api-key", b"dummy"), (b"authorization", b"Bearer ollama")]) == "dummy"


def test_a_key_is_taken_apart_and_nothing_else_is() -> None:
    assert parse_key(KEY) == (ID, SECRET)
    assert (len(ID), len(SECRET)) == (8, 43)
    for text in ("", "llh_", KEY[:-1], KEY + "A", KEY.upper(), f"{KEY}\n", "sk-" + "a" * 48):
        assert parse_key(text) is None


def test_a_good_key_is_known() -> None:
    key = identify(fold(CREATED), KEY, 10, required=True)

    assert key is not None
    assert (key.key, key.name) == (ID, "laptop")


def test_what_is_wrong_with_a_key_is_said_and_its_secret_is_not() -> None:
    other = render_key(ID, render_secret(b"t" * 32))

    said = [
        refusal(fold(CREATED), None),
        refusal(fold(CREATED), other),
        refusal(Keyring(), KEY),
        refusal(fold(CREATED, REVOKED), KEY),
        refusal(fold(CREATED), KEY, now_ns=1000),
    ]

    assert "needs an API key" in said[0]
    assert said[1] == said[2]
    assert "was revoked" in said[3]
    assert "has expired" in said[4]
    assert SECRET not in "".join(said)


def test_the_end_of_a_key_is_told_only_to_who_has_it() -> None:
    guessed = render_key(ID, render_secret(b"t" * 32))

    assert "revoked" not in refusal(fold(CREATED, REVOKED), guessed)


def test_without_need_of_keys_any_credential_does_but_a_dead_key() -> None:
    keyring = fold(CREATED)

    for credential in (None, "ollama", "sk-test", render_key(ID, render_secret(b"t" * 32))):
        assert identify(keyring, credential, 10, required=False) is None
    assert identify(keyring, KEY, 10, required=False) is not None
    with pytest.raises(NoKey, match="revoked"):
        identify(fold(CREATED, REVOKED), KEY, 10, required=False)


def test_a_revoked_key_does_not_come_back() -> None:
    assert fold(CREATED, REVOKED, CREATED).keys[ID].revoked
    assert fold(REVOKED, CREATED).keys[ID].revoked
    assert fold(NodeLeft(node="n", at_ns=1, cause="x")) == Keyring()


def test_models_are_named_or_described_by_patterns() -> None:
    key = Key(key=ID, models=("cria", "llama-3.1-*", "odd[1]"))

    assert [name for name in ("cria", "llama-3.1-8b", "odd[1]", "cria2", "Cria", "qwen") if sees(key, name)] == [
        "cria",
        "llama-3.1-8b",
        "odd[1]",
    ]
    assert sees(Key(key=ID), "anything")


def test_scope_is_refused_with_what_the_key_is_for() -> None:
    key = Key(key=ID, models=("cria",), dialects=("openai", "ollama"))

    assert refuse_dialect(key, "openai") is None
    assert refuse_dialect(key, "anthropic") == "this API key is for openai, ollama, not for anthropic"
    assert refuse_model(key, "cria", "cria", None) is None
    assert refuse_model(key, "qwen", "q", "q") == "this API key may not use the model 'q'; it is for cria"


def test_a_key_for_an_alias_may_use_the_alias_and_not_the_model_by_its_own_name() -> None:
    key = Key(key=ID, models=("chat",))

    assert refuse_model(key, "llama", "CHAT:latest", "chat") is None
    assert refuse_model(key, "llama", "llama", None) is not None
    assert refuse_model(Key(key=ID, models=("llama",)), "llama", "chat", "chat") is None


def test_a_pattern_of_names_is_in_scope_by_itself_and_by_each_of_its_names() -> None:
    for scope in ("claude-*", "claude-3", "claude-?"):
        assert refuse_model(Key(key=ID, models=(scope,)), "llama", "claude-3", "claude-*") is None
    assert refuse_model(Key(key=ID, models=("claude-4",)), "llama", "claude-3", "claude-*") is not None


def test_a_name_that_means_nothing_does_not_lead_a_key_to_the_default_model() -> None:
    assert refuse_model(Key(key=ID, models=("llama-*",)), "the-default", "llama-nothing", None) is not None


def test_a_key_has_ended_from_its_last_moment_on() -> None:
    assert find_end(Key(key=ID, expires_ns=6), 5) is None
    assert "expired" in (find_end(Key(key=ID, expires_ns=5), 5) or "")
    assert "revoked" in (find_end(Key(key=ID, revoked=True), 5) or "")


def test_scope_is_a_403_in_the_dialects_words() -> None:
    problem = problem_of(NotAllowed("no"))

    assert problem.status == 403
    assert b"permission_error" in OPENAI.render_problem(problem, "r")
    assert OPENAI.name in DIALECTS


@pytest.mark.parametrize(
    ("mode", "loopback_only", "required"),
    [
        ("auto", True, False),
        ("auto", False, True),
        ("required", True, True),
        ("off", False, False),
    ],
)
def test_keys_are_required_as_soon_as_others_can_reach_the_gateway(
    mode: str, loopback_only: bool, required: bool
) -> None:
    assert keys_required(mode, loopback_only=loopback_only) is required  # type: ignore[arg-type]

"""The keys of a herd, as one gateway applies them while the herd changes."""

from typing import Any

import pytest

from llamaherd_gateway.access.gate import Access
from llamaherd_gateway.access.keys import Key, Keyring, KeysMode, NoKey, NotAllowed
from llamaherd_gateway.projection import Alias, Fleet
from llamaherd_gateway.store import View
from llamaherd_shared.api_key import hash_secret, render_id, render_key, render_secret
from llamaherd_shared.errors import Unavailable

ID, SECRET = render_id(b"12345"), render_secret(b"s" * 32)
HEADERS = [(b"authorization", b"Bearer " + render_key(ID, SECRET).encode())]


def key(**fields: Any) -> Key:
    return Key(key=ID, secret_sha256=hash_secret(SECRET), **fields)


def gate(*keys: Key, mode: KeysMode = "required", aliases: tuple[str, ...] = (), caught_up: bool = True) -> Access:
    view = View(Fleet(keyring=Keyring({one.key: one for one in keys})))
    return Access(view, mode, loopback_only=True, gateway="g", aliases=aliases, caught_up=lambda: caught_up)


def test_a_gateway_that_does_not_know_all_keys_yet_sends_nobody_away_for_good() -> None:
    """401 is final to clients: those that are told it in the second of a restart stop for ever."""
    starting = gate(caught_up=False)

    with pytest.raises(Unavailable) as caught:
        starting.identify(HEADERS)
    assert caught.value.retry_after_s == 1
    for headers in ([], [(b"x-api-key", b"sk-made-up")]):
        with pytest.raises(NoKey):
            starting.identify(headers)


def test_a_gateway_that_is_starting_lets_in_whom_it_knows_and_nobody_who_has_been_sent_away() -> None:
    assert gate(key(), caught_up=False).identify(HEADERS) == key()
    with pytest.raises(NoKey, match="revoked"):
        gate(key(revoked=True), caught_up=False).identify(HEADERS)
    with pytest.raises(NoKey, match="not known"):
        gate().identify(HEADERS)


def test_a_key_is_good_for_aliases_that_clients_make_later() -> None:
    view = View(Fleet())
    access = Access(view, "required", loopback_only=True, gateway="g")
    narrow = key(models=("chat",))
    with pytest.raises(NotAllowed):
        access.check_model(narrow, "cria", "chat")

    view.fleet = Fleet(aliases={"chat": Alias(alias="chat", model="cria")})

    for asked in ("chat", "Chat", "chat:latest"):
        access.check_model(narrow, "cria", asked)
    with pytest.raises(NotAllowed):
        access.check_model(narrow, "cria", "cria")


def test_aliases_that_are_configured_anew_are_in_scope_from_then_on() -> None:
    access = gate(aliases=("old",))

    access.use_aliases(("claude-*",))

    access.check_model(key(models=("claude-*",)), "cria", "claude-9")
    with pytest.raises(NotAllowed):
        access.check_model(key(models=("old",)), "cria", "old")


def test_configured_aliases_are_in_scope_and_what_only_the_default_model_answers_to_is_not() -> None:
    access = gate(aliases=("gpt-4o", "claude-*"))

    access.check_model(key(models=("gpt-*",)), "cria", "gpt-4o")
    access.check_model(key(models=("claude-*",)), "cria", "claude-3")
    with pytest.raises(NotAllowed):
        access.check_model(key(models=("gpt-*",)), "cria", "gpt-5")


def test_a_key_that_has_ended_since_its_request_came_is_refused() -> None:
    view = View(Fleet(keyring=Keyring({ID: key()})))
    access = Access(view, "required", loopback_only=True, gateway="g")
    held = access.identify(HEADERS)

    access.check_end(held)
    access.check_end(None)
    view.fleet = Fleet(keyring=Keyring({ID: key(revoked=True)}))

    with pytest.raises(NoKey, match="revoked"):
        access.check_end(held)
    with pytest.raises(NoKey, match="revoked"):
        access.check_model(held, "cria", "cria")
    view.fleet = Fleet()
    access.check_end(held)  # the log is being read anew: nothing is known against it


def test_a_key_is_told_no_other_names() -> None:
    access = gate()

    assert access.visible_names(key(models=("a*",)), ("a1", "b1")) == ("a1",)
    assert access.visible_names(key(), ("a1", "b1")) == ("a1", "b1")
    assert access.visible_names(None, ("a1", "b1")) == ("a1", "b1")

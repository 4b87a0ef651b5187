"""API keys: which there are, whose request this is, and what it may use. Folded from `ev.access`."""

import base64
import binascii
import hmac
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, Final, Literal

import msgspec

from llamaherd_gateway.problems import BadRequest
from llamaherd_shared.api_key import PREFIX, hash_secret, parse_key
from llamaherd_shared.events.access import AccessBase, KeyCreated, KeyLimits, KeyRevoked

KeysMode = Literal["auto", "required", "off"]
"""`auto`: required as soon as the gateway listens on more than loopback."""

CREDENTIAL_HEADERS: Final = frozenset({b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key"})
"""Where clients put a key: OpenAI's, Ollama's, LM Studio's and llama-server's (the first, with or without a scheme),
Anthropic's, Azure's, Google's. Never forwarded and never logged."""

_SHORT: Final = 32
"""Names in refusals are cut to so many patterns."""


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """One API key, as far as requests depend on it."""

    key: str
    """Its id."""
    name: str = ""
    secret_sha256: str = ""
    models: tuple[str, ...] = ()
    """Names or patterns; empty: all."""
    dialects: tuple[str, ...] = ()
    """Empty: all."""
    expires_ns: int | None = None
    limits: KeyLimits = KeyLimits()
    revoked: bool = False


class Keyring(msgspec.Struct, frozen=True):
    """Every key there ever was, by id: revoked ones stay, so that nothing brings them back."""

    keys: Mapping[str, Key] = {}


class NoKey(BadRequest):
    """The request comes without a good key: 401, to be answered with `WWW-Authenticate: Bearer` (RFC 9110, 11.6.1)."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=401, code="invalid_api_key")


class NotAllowed(BadRequest):
    """The request is outside its key's scope: 403."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=403, code="not_allowed")


def evolve_key(key: Key | None, event: AccessBase) -> Key | None:
    """The key after one more fact about it; `None` before its first. Never raises."""
    match event:
        case KeyCreated() if key is None or not key.revoked:
            return Key(
                key=event.key,
                name=event.name,
                secret_sha256=event.secret_sha256,
                models=tuple(event.models),
                dialects=tuple(event.dialects),
                expires_ns=event.expires_ns,
                limits=event.limits,
            )
        case KeyRevoked():
            return msgspec.structs.replace(key or Key(key=event.key), revoked=True)
    return key


def evolve_keys(keyring: Keyring, event: Any) -> Keyring:
    """All keys after one more fact. Facts of other kinds change nothing."""
    if not isinstance(event, AccessBase):
        return keyring
    key = evolve_key(keyring.keys.get(event.key), event)
    return keyring if key is None else Keyring({**keyring.keys, event.key: key})


def keys_required(mode: KeysMode, *, loopback_only: bool) -> bool:
    """Whether a request must come with a key."""
    return mode == "required" or (mode == "auto" and not loopback_only)


def credential_of(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """What a request proves itself with, out of its headers (names in lower case); `None`: it has nothing.

    SDKs send a made-up key beside the real one, or in its place where none is needed: one that looks like ours
    wins, else the first.
    """
    first: str | None = None
    for name, value in headers:
        if name not in CREDENTIAL_HEADERS:
            continue
        for credential in _candidates(name, value.decode("latin-1").strip()):
            if credential.startswith(PREFIX):
                return credential
            first = first or credential
    return first


def _candidates(name: bytes, value: str) -> list[str]:
    if not value or name != b"authorization":
        return [value] if value else []
    scheme, _, rest = value.partition(" ")
    rest = rest.strip()
    if not rest:
        # llama-server takes a bare key; a bare scheme is nothing.
        return [] if scheme.lower() in ("bearer", "basic") else [scheme]
    return _basic(rest) if scheme.lower() == "basic" else [rest]


def _basic(text: str) -> list[str]:
    """Password and user (RFC 7617): `curl -u KEY:` and `https://user:KEY@host` both occur."""
    try:
        user, _, password = base64.b64decode(text, validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        return []
    return [part for part in (password, user) if part]


def identify(keyring: Keyring, credential: str | None, now_ns: int, *, required: bool) -> Key | None:
    """Whose request this is. `None`: nobody's, where no key is required. Raises `NoKey`.

    Without need of keys any credential is accepted, as SDKs cannot do without one; but a key of ours is always
    looked at, so that its limits and its end hold there too.
    """
    parsed = parse_key(credential) if credential is not None else None
    key = keyring.keys.get(parsed[0]) if parsed is not None else None
    if parsed is None or key is None or not hmac.compare_digest(key.secret_sha256, hash_secret(parsed[1])):
        if not required:
            return None
        if credential is None:
            raise NoKey("this gateway needs an API key: send it as `Authorization: Bearer llh_...`")
        raise NoKey("this API key is not known here; `llamaherd key create NAME` makes one")
    if (why := find_end(key, now_ns)) is not None:
        raise NoKey(why)
    return key


def is_stranger(keyring: Keyring, credential: str | None) -> bool:
    """Whether this is a key of ours by its looks, of which nothing is known."""
    parsed = parse_key(credential) if credential is not None else None
    return parsed is not None and parsed[0] not in keyring.keys


def find_end(key: Key, now_ns: int) -> str | None:
    """Why a key is no longer good, one sentence; `None` while it is."""
    if key.revoked:
        return f"the API key {PREFIX}{key.key} was revoked"
    if key.expires_ns is not None and now_ns >= key.expires_ns:
        return f"the API key {PREFIX}{key.key} has expired"
    return None


def refuse_dialect(key: Key, dialect: str) -> str | None:
    """Why this key may not be used in a dialect, one sentence; `None` when it may."""
    if not key.dialects or dialect in key.dialects:
        return None
    return f"this API key is for {_list(key.dialects)}, not for {dialect}"


def refuse_model(key: Key, model: str, asked: str, alias: str | None) -> str | None:
    """Why this key may not use a model, one sentence; `None` when it may.

    `asked` is what the client wrote, and `alias` the alias it means: a key that is limited to that may use it. What
    means nothing and leads to the default model is no alias, or a key for `llama-*` could have it as `llama-nothing`.
    """
    if sees(key, model) or (alias is not None and (sees(key, alias) or sees(key, asked))):
        return None
    return f"this API key may not use the model {asked!r}; it is for {_list(key.models)}"


def sees(key: Key, model: str) -> bool:
    """Whether a model's name is in the key's scope: what is not is left out of lists as well."""
    # A name as it stands first: models' names may hold brackets.
    return not key.models or model in key.models or any(fnmatchcase(model, pattern) for pattern in key.models)


def _list(names: tuple[str, ...]) -> str:
    return ", ".join(names[:_SHORT]) + (" and others" if len(names) > _SHORT else "")

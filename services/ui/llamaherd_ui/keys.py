"""Making and ending an API key: what may be asked for, and the facts that follow."""

import math
from collections.abc import Sequence
from typing import Final

import msgspec

from llamaherd_shared.api_key import hash_secret, parse_id, render_prefix
from llamaherd_shared.errors import NotFound, Rejected
from llamaherd_shared.events.access import DIALECTS, KeyCreated, KeyLimits, KeyRevoked
from llamaherd_ui.projection import AccessKey, Entities

NAME_CHARACTERS: Final = 100
PATTERNS: Final = 100
PATTERN_CHARACTERS: Final = 200
MAX_EXPIRES_S: Final = 100 * 366 * 86_400
MAX_LIMIT: Final = 10**12


class NewLimits(KeyLimits, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """As `KeyLimits`. A limit with a typing mistake in its name is refused: it would be no limit."""


class NewKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key that somebody wants."""

    name: str
    """What people will call it."""
    models: list[str] = []
    """Names, or patterns with `*`, `?` and `[...]`; empty: all."""
    dialects: list[str] = []
    """Of `openai`, `anthropic`, `ollama`, `lmstudio`, `llama`; empty: all."""
    expires_s: float | None = None
    """Seconds from now; `null`: never."""
    limits: NewLimits = NewLimits()
    """Of all gateways together; 0: no limit."""


def decide_created(asked: NewKey, *, key_id: str, secret: str, now_ns: int) -> KeyCreated:
    """The fact that makes the key. Raises `Rejected` with what is wrong."""
    unknown = [dialect for dialect in asked.dialects if dialect not in DIALECTS]
    if unknown:
        raise Rejected(f"`dialects`: {unknown[0]!r} is none; there are {', '.join(DIALECTS)}")
    for limit in KeyLimits.__struct_fields__:
        if not 0 <= getattr(asked.limits, limit) <= MAX_LIMIT:
            raise Rejected(f"`limits.{limit}`: must be from 0 (no limit) to {MAX_LIMIT}")
    return KeyCreated(
        key=key_id,
        at_ns=now_ns,
        name=_check_name(asked.name),
        prefix=render_prefix(key_id),
        secret_sha256=hash_secret(secret),
        models=_check_patterns(asked.models),
        dialects=_unique(asked.dialects),
        expires_ns=_decide_end(asked.expires_s, now_ns),
        limits=KeyLimits(**msgspec.structs.asdict(asked.limits)),
    )


def decide_revoked(entities: Entities, text: str, *, now_ns: int) -> tuple[AccessKey, KeyRevoked | None]:
    """The key with this id or prefix, and the fact that ends it; `None` when it was ended before.

    Raises `NotFound`.
    """
    key = entities.get(f"key/{parse_id(text)}")
    if not isinstance(key, AccessKey):
        # Not what was sent: it may be a whole key, and this goes to logs.
        raise NotFound("there is no API key with this id; `llamaherd key list` shows them")
    return key, KeyRevoked(key=key.key, at_ns=now_ns) if key.revoked_ns is None else None


def _check_name(name: str) -> str:
    name = name.strip()
    if not name or len(name) > NAME_CHARACTERS or not name.isprintable():
        raise Rejected(f"`name`: must be 1 to {NAME_CHARACTERS} printable characters")
    return name


def _check_patterns(patterns: Sequence[str]) -> list[str]:
    if len(patterns) > PATTERNS:
        raise Rejected(f"`models`: at most {PATTERNS}; a pattern like `llama-*` stands for many")
    for pattern in patterns:
        if not pattern.strip() or len(pattern) > PATTERN_CHARACTERS or not pattern.isprintable():
            raise Rejected(f"`models`: each must be 1 to {PATTERN_CHARACTERS} printable characters")
    return _unique(patterns)


def _decide_end(expires_s: float | None, now_ns: int) -> int | None:
    if expires_s is None:
        return None
    if not math.isfinite(expires_s) or not 0 < expires_s <= MAX_EXPIRES_S:
        raise Rejected("`expires_s`: must be greater than 0 and at most 100 years; leave it out for a key without end")
    return now_ns + int(expires_s * 1e9)


def _unique(texts: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(texts))

"""What an API key looks like: `llh_<id>_<secret>`. The id is public, the secret is kept as its hash only."""

import base64
import hashlib
import re
from typing import Final

PREFIX: Final = "llh_"
"""Tells our keys apart from others, for people and for programs that look for leaked ones."""
ID_BYTES: Final = 5
SECRET_BYTES: Final = 32
"""256 bits: a fast hash is enough, as there is nothing to guess."""

_KEY: Final = re.compile(r"llh_([a-z2-7]{8})_([A-Za-z0-9_-]{43})")
_ID: Final = re.compile(r"[a-z2-7]{8}")


def render_id(random: bytes) -> str:
    """The id that `ID_BYTES` random bytes make: 8 characters, legal in subjects and URLs."""
    return base64.b32encode(random).decode().lower()


def render_key(key_id: str, secret: str) -> str:
    return f"{PREFIX}{key_id}_{secret}"


def render_secret(random: bytes) -> str:
    """The secret that `SECRET_BYTES` random bytes make: 43 characters."""
    return base64.urlsafe_b64encode(random).rstrip(b"=").decode()


def render_prefix(key_id: str) -> str:
    """What may be shown of a key."""
    return f"{PREFIX}{key_id}"


def parse_key(text: str) -> tuple[str, str] | None:
    """(id, secret); `None` when it is no key of ours."""
    found = _KEY.fullmatch(text)
    return (found[1], found[2]) if found else None


def parse_id(text: str) -> str | None:
    """The id in an id, a prefix or a whole key; `None` when there is none."""
    head = text.strip().removeprefix(PREFIX).partition("_")[0]
    return head if _ID.fullmatch(head) else None


def hash_secret(secret: str) -> str:
    """SHA-256, 64 hexadecimal digits."""
    return hashlib.sha256(secret.encode()).hexdigest()

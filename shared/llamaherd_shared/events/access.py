"""Facts about one API key. Written by: ui. Read by: gateway, ui. Never holds the key itself."""

from typing import Final

import msgspec

DIALECTS: Final = ("openai", "anthropic", "ollama", "lmstudio", "llama")
"""What a key can be limited to. The gateway's dialects have these names."""


class KeyLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one key may use of the whole herd, all gateways together. 0: no limit."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    """Of prompts and answers together, as llama-server counts them."""
    concurrency: int = 0
    """Requests at once, waiting ones included."""

    @property
    def any(self) -> bool:
        return bool(self.requests_per_minute or self.tokens_per_minute or self.concurrency)


class AccessBase(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """Fields every access event carries."""

    key: str
    """The key's id: 8 characters, part of the key (`llamaherd_shared.api_key`)."""
    at_ns: int
    """Unix nanoseconds, from the writer's clock."""


class KeyCreated(AccessBase, frozen=True, kw_only=True, tag="key.created.v1"):
    """A key was made and shown to the person who asked for it."""

    name: str
    """What a person calls it; names need not differ."""
    prefix: str
    """The beginning of the key, by which a person knows it again: `llh_<id>`."""
    secret_sha256: str
    """64 hexadecimal digits. The secret has 256 random bits: nothing can be learnt from its hash."""
    models: list[str] = []
    """Names or patterns with `*`, `?` and `[...]` of the models it may use; empty: all."""
    dialects: list[str] = []
    """Of `DIALECTS`; empty: all."""
    expires_ns: int | None = None
    """Unix nanoseconds from which it is refused; `None`: never."""
    limits: KeyLimits = KeyLimits()


class KeyRevoked(AccessBase, frozen=True, kw_only=True, tag="key.revoked.v1"):
    """The key is refused from now on. There is no way back."""


AccessEvent = KeyCreated | KeyRevoked

"""Who asks, and whether they may: keys, their scopes and their limits, for hot and other routes alike."""

import time
from collections.abc import Iterable
from typing import Final

from llamaherd_gateway.access.keys import (
    Key,
    KeysMode,
    NotAllowed,
    allows,
    credential_of,
    identify,
    keys_required,
    sees,
)
from llamaherd_gateway.access.limits import Limiter, Refusal
from llamaherd_gateway.dialects.dialect import Card, Route
from llamaherd_gateway.store import View

ADMINISTRATIVE: Final = "llama"
"""The dialect that a key must be for by name, to see or change what all users of a model share."""


class Access:
    """The keys of a herd, as one gateway applies them."""

    def __init__(self, view: View, mode: KeysMode, *, loopback_only: bool, gateway: str) -> None:
        """`gateway` names this process among all gateways."""
        self._view = view
        self.required = keys_required(mode, loopback_only=loopback_only)
        self.limiter = Limiter(gateway, time.monotonic())

    @property
    def any_key(self) -> bool:
        """Whether there is any key that is good."""
        return any(not key.revoked for key in self._view.fleet.keyring.keys.values())

    def identify(self, headers: Iterable[tuple[bytes, bytes]]) -> Key | None:
        """Whose request this is; `None`: nobody's, which is allowed here. Raises `NoKey`."""
        keyring = self._view.fleet.keyring
        if not self.required and not keyring.keys:
            return None
        return identify(keyring, credential_of(headers), time.time_ns(), required=self.required)

    def check(self, key: Key | None, route: Route, model: str, asked: str) -> None:
        """Raises `NotAllowed` when this key is not for this model or route."""
        if key is not None:
            why = allows(key, model, route.dialect.name, time.time_ns(), alias=asked)
            if why is not None:
                raise NotAllowed(why)
        if route.administrative and self.required and (key is None or ADMINISTRATIVE not in key.dialects):
            text = f"this shows or changes what all users share: it needs a key made with `--dialect {ADMINISTRATIVE}`"
            raise NotAllowed(text)

    def check_managing(self, key: Key | None) -> None:
        """Raises `NotAllowed` when this key may not load, unload, pull or delete models."""
        if key is not None and key.models:
            raise NotAllowed("this API key is limited to some models and cannot manage them")

    def visible(self, key: Key | None, cards: tuple[Card, ...]) -> tuple[Card, ...]:
        """What a list shows to this key."""
        return cards if key is None else tuple(card for card in cards if sees(key, card.name) or sees(key, card.model))

    def admit(self, key: Key) -> Refusal | None:
        return self.limiter.admit(key, time.monotonic())

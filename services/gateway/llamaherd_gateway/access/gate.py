"""Who asks, and whether they may: keys, their scopes and their limits, for hot and other routes alike."""

import time
from collections.abc import Callable, Iterable
from typing import Final

from llamaherd_gateway.access.keys import (
    CREDENTIAL_HEADERS,
    Key,
    Keyring,
    KeysMode,
    NoKey,
    NotAllowed,
    credential_of,
    find_end,
    identify,
    is_stranger,
    keys_required,
    refuse_dialect,
    refuse_model,
    sees,
)
from llamaherd_gateway.access.limits import Limiter, Refusal
from llamaherd_gateway.dialects.dialect import Card, Route
from llamaherd_gateway.routing.names import Names
from llamaherd_gateway.store import View
from llamaherd_shared.errors import Unavailable

ADMINISTRATIVE: Final = "llama"
"""The dialect that a key must be for by name, to see or change what all users of a model share."""

REMEMBERED: Final = 1024
"""Headers whose key is known without hashing."""


class Access:
    """The keys of a herd, as one gateway applies them."""

    def __init__(
        self,
        view: View,
        mode: KeysMode,
        *,
        loopback_only: bool,
        gateway: str,
        aliases: Iterable[str] = (),
        caught_up: Callable[[], bool] = lambda: True,
    ) -> None:
        """`gateway` names this process among all gateways. `aliases`: those that are configured, patterns too.

        `caught_up`: whether every key there is must be known here.
        """
        self._view, self.gateway = view, gateway
        self.required = keys_required(mode, loopback_only=loopback_only)
        self.limiter = Limiter(gateway, time.monotonic())
        self._caught_up = caught_up
        self._configured = tuple(aliases)
        self._seen: dict[tuple[tuple[bytes, bytes], ...], Key] = {}
        """Good keys by the headers they came in, until any key changes: hashing takes half as long as all the rest."""
        self._seen_in = view.fleet.keyring
        self._made = view.fleet.aliases
        self._aliases = self._name_aliases()

    @property
    def any_key(self) -> bool:
        """Whether there is any key that is good."""
        return any(not key.revoked for key in self._view.fleet.keyring.keys.values())

    def use_aliases(self, aliases: Iterable[str]) -> None:
        """From now on these are configured."""
        self._configured = tuple(aliases)
        self._aliases = self._name_aliases()

    def identify(self, headers: Iterable[tuple[bytes, bytes]]) -> Key | None:
        """Whose request this is; `None`: nobody's, which is allowed here.

        Raises `NoKey`, or `Unavailable` for a key that a gateway which is just starting may not have heard of yet.
        """
        keyring = self._view.fleet.keyring
        if not self.required and not keyring.keys:
            return None
        if keyring is not self._seen_in:
            self._seen, self._seen_in = {}, keyring
        proof = tuple([header for header in headers if header[0] in CREDENTIAL_HEADERS])
        key = self._seen.get(proof)
        if key is not None and (key.expires_ns is None or time.time_ns() < key.expires_ns):
            return key
        key = self._identify(keyring, credential_of(proof))
        if key is not None:
            if len(self._seen) >= REMEMBERED:
                self._seen.clear()
            self._seen[proof] = key
        return key

    def _identify(self, keyring: Keyring, credential: str | None) -> Key | None:
        try:
            return identify(keyring, credential, time.time_ns(), required=self.required)
        except NoKey:
            if is_stranger(keyring, credential) and not self._caught_up():
                text = "the gateway is starting and does not know every API key yet"
                raise Unavailable(text, retry_after_s=1) from None
            raise

    def check_route(self, key: Key | None, route: Route) -> None:
        """Raises `NotAllowed` when this key is not for this route, whatever the model."""
        self.check_dialect(key, route.dialect.name)
        if route.administrative and self.required and (key is None or ADMINISTRATIVE not in key.dialects):
            text = f"this shows or changes what all users share: it needs a key made with `--dialect {ADMINISTRATIVE}`"
            raise NotAllowed(text)

    def check_dialect(self, key: Key | None, dialect: str) -> None:
        """Raises `NotAllowed` when this key may not be used in a dialect."""
        if key is not None and (why := refuse_dialect(key, dialect)) is not None:
            raise NotAllowed(why)

    def check_model(self, key: Key | None, model: str, asked: str) -> None:
        """Raises `NotAllowed` when this key is not for the model that `asked` means; `NoKey` when it has ended."""
        if key is None:
            return
        self.check_end(key)
        if key.models and (why := refuse_model(key, model, asked, self._alias_of(asked))) is not None:
            raise NotAllowed(why)

    def check_end(self, key: Key | None) -> None:
        """Raises `NoKey` when the key has ended since the request came."""
        if key is None:
            return
        now = self._view.fleet.keyring.keys.get(key.key, key)
        if (why := find_end(now, time.time_ns())) is not None:
            raise NoKey(why)

    def check_managing(self, key: Key | None) -> None:
        """Raises `NotAllowed` when this key may not load, unload, pull or delete models."""
        if key is not None and key.models:
            raise NotAllowed("this API key is limited to some models and cannot manage them")

    def visible(self, key: Key | None, cards: tuple[Card, ...]) -> tuple[Card, ...]:
        """What a list shows to this key."""
        return cards if key is None else tuple(card for card in cards if sees(key, card.name) or sees(key, card.model))

    def visible_names(self, key: Key | None, names: tuple[str, ...]) -> tuple[str, ...]:
        """Models' names that an error may tell to this key."""
        return names if key is None else tuple(name for name in names if sees(key, name))

    def admit(self, key: Key) -> Refusal | None:
        return self.limiter.admit(key, time.monotonic())

    def _alias_of(self, asked: str) -> str | None:
        """The alias that this means, as it was made; a pattern of names for one of those; `None`: it means none."""
        if self._made is not self._view.fleet.aliases:
            self._made = self._view.fleet.aliases
            self._aliases = self._name_aliases()
        return self._aliases.resolve(asked)

    def _name_aliases(self) -> Names:
        return Names((), {alias: alias for alias in (*self._made, *self._configured)}, None)

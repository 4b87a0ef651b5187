"""Which web pages may use a listener: cross-origin resource sharing (WHATWG Fetch, section 3.3; api-dialects, 1.3).

llama-server's own `Access-Control-*` headers never reach a client (`heads.keep_header`), so there is one set: this.
"""

import re
from collections.abc import Iterable
from typing import Final

import msgspec

Header = tuple[bytes, bytes]

OLLAMA_ORIGINS: Final = (
    *(
        f"{scheme}://{host}{port}"
        for host in ("localhost", "127.0.0.1", "0.0.0.0")
        for scheme in ("http", "https")
        for port in ("", ":*")
    ),
    "app://*",
    "file://*",
    "tauri://*",
    "vscode-webview://*",
    "vscode-file://*",
)
"""What Ollama's clients count on: pages of this machine, and programs that are web pages in a window."""

ANY: Final = "*"

REMEMBERED: Final = 256
"""Origins whose answer is kept: a hostile page may make up millions."""

_METHODS: Final = b"GET, POST, PUT, PATCH, DELETE, HEAD, OPTIONS"
_EXPOSED: Final = b"x-request-id, request-id, retry-after"
_MAX_AGE: Final = b"600"
"""Seconds a browser may remember a preflight's answer: short, as origins can be configured anew at any time."""

_WILD: Final = r"[\w.:\[\]-]*"
"""What `*` stands for: a port, a name, or a part of one. An origin has no path."""

_FIELD_NAMES: Final = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~, \t-]{1,2048}")
"""A list of header names (RFC 9110, section 5.1)."""


class Preflight(msgspec.Struct, frozen=True):
    """The whole answer to a browser that asks before it asks; the body is empty."""

    status: int
    headers: tuple[Header, ...]


class Cors:
    """The rules of one listener. `origins` may hold one or more `*` each, as in `https://*.example.com`."""

    def __init__(self, origins: Iterable[str], *, refuses: bool = True) -> None:
        patterns = [_normalize(origin) for origin in origins]
        self._any = ANY in patterns
        self._refuses = refuses
        """Whether a request from any other page is refused (403), as by Ollama; else it only goes without permission.

        Refusing matters: a page can send a POST although it cannot read the answer; enough to unload a model.
        """
        alternatives = "|".join(re.escape(pattern).replace(r"\*", _WILD) for pattern in patterns)
        self._allowed = re.compile(alternatives or "(?!)", re.ASCII)
        self._seen: dict[bytes, tuple[Header, ...] | None] = {}

    def answer(self, origin: bytes | None, host: bytes | None) -> tuple[Header, ...] | None:
        """Headers for the answer to a request with this `Origin` and `Host`; `None`: refuse it with 403, empty.

        A page of the gateway's own address is not another origin, whatever is configured.
        """
        if origin is None:
            return () if self._any else _VARY
        try:
            found = self._seen[origin]
        except KeyError:
            found = self._look_up(origin)
        return _VARY if found is None and _is_same(origin, host) else found

    def preflight(
        self, origin: bytes | None, host: bytes | None, method: bytes | None, names: bytes | None
    ) -> Preflight | None:
        """The answer to an OPTIONS request; `None` when it is no preflight, but one like any other.

        `method` and `names` are `Access-Control-Request-Method` and `-Headers`.
        """
        if origin is None or method is None:
            return None
        headers = self.answer(origin, host)
        if headers is None:
            return Preflight(403, _VARY)
        if headers is _VARY:
            return Preflight(204, _VARY)  # without permission the browser will not ask
        allowed = [*headers, (b"access-control-allow-methods", _METHODS), (b"access-control-max-age", _MAX_AGE)]
        if names is not None and _FIELD_NAMES.fullmatch(names):
            # `*` would not cover Authorization; a list would have to know every SDK's headers.
            allowed.append((b"access-control-allow-headers", names))
        return Preflight(204, tuple(allowed))

    def _look_up(self, origin: bytes) -> tuple[Header, ...] | None:
        found = self._headers(origin)
        if len(self._seen) >= REMEMBERED:
            self._seen.clear()
        self._seen[origin] = found
        return found

    def _headers(self, origin: bytes) -> tuple[Header, ...] | None:
        exposed = (b"access-control-expose-headers", _EXPOSED)
        if self._any:
            return ((b"access-control-allow-origin", b"*"), exposed)
        if self._allowed.fullmatch(origin.decode("latin-1").lower()):
            return ((b"access-control-allow-origin", origin), exposed, *_VARY)
        return None if self._refuses else _VARY


_VARY: Final[tuple[Header, ...]] = ((b"vary", b"origin"),)
"""Caches must not give one page's answer to another."""


def _normalize(origin: str) -> str:
    """As a browser writes it: in lower case, without a slash at the end."""
    origin = origin.strip().lower()
    return origin if origin.endswith("://") else origin.removesuffix("/")


def _is_same(origin: bytes, host: bytes | None) -> bool:
    """Whether the page came from the address that the request goes to."""
    scheme, _, rest = origin.lower().partition(b"://")
    return host is not None and scheme in (b"http", b"https") and rest == host.strip().lower()

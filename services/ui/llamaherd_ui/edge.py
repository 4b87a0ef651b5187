"""Who may talk to this port: rules for hosts and origins, and the headers of every answer.

A page of another site can make a visitor's browser send requests here. Two rules stop it: the name in the
address must be ours (else a foreign name could be pointed at this machine: DNS rebinding), and a request that
changes something must not come from a foreign page. Programs that are no browsers send neither header and pass.
"""

import ipaddress
from collections.abc import Collection, Mapping
from typing import Final

from llamaherd_shared.addresses import is_loopback

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})

HEADERS: Final[Mapping[str, str]] = {
    # One origin serves everything: nothing is loaded from anywhere else. `data:` is for small icons in CSS.
    "content-security-policy": (
        "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
        "form-action 'self'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


def host_name(header: str) -> str:
    """The name in a `Host` header, lower case, without port and brackets."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.rpartition(":")[0].lower() if header.count(":") == 1 else header.lower()


def is_host_allowed(header: str, *, bound_to: str, allowed: Collection[str]) -> bool:
    """Whether a request may name us so.

    Loopback names always; addresses only when we listen on more than loopback (an address cannot be rebound);
    other names only when they are configured.
    """
    name = host_name(header)
    if is_loopback(name):
        return True
    if not is_loopback(bound_to) and (_address(name) is not None or name == bound_to.lower()):
        return True
    return any(
        name == pattern.lower() or (pattern.startswith("*.") and name.endswith(pattern[1:].lower()))
        for pattern in allowed
    )


def find_refusal(
    method: str, headers: Mapping[str, str], *, bound_to: str, allowed: Collection[str]
) -> tuple[int, str] | None:
    """(HTTP status, sentence) when the request must not be answered; `None` when it may. Header names in lower case."""
    host = headers.get("host", "")
    if not is_host_allowed(host, bound_to=bound_to, allowed=allowed):
        return 400, f"this herd is not known as {host_name(host)!r}: add that name to `ui.allowed_hosts` if it is yours"
    if method in SAFE_METHODS:
        return None
    if headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
        return 403, "a page of another site may not change this herd"
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2].lower() != host.lower():
        return 403, f"a page of {origin} may not change this herd"
    return None


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None

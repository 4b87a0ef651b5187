"""The `Host` check of a listener on loopback, against DNS rebinding (api-dialects, 1.3: the rule is Ollama's).

A page on evil.example can make that name mean 127.0.0.1 and then ask this port as its own origin. Its browser still
sends `Host: evil.example`, so whoever asks by a name that cannot be this machine's is refused.
"""

import re
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final

REMEMBERED: Final = 256

_LOCAL_ENDINGS: Final = (".localhost", ".local", ".internal")
"""Names that no public DNS server gives away (RFC 6761, RFC 6762, and the reserved `internal`)."""

_PRIVATE: Final = tuple(map(ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")))

_HOST: Final = re.compile(r"(?:\[(?P<literal>[0-9a-f:.]+)(?:%25[^\]]*)?\]|(?P<name>[^\[\]:/@?#\s]+))(?::[0-9]*)?")
"""RFC 9110, section 7.2: an IPv6 address stands in brackets (RFC 6874: with `%25` before a zone)."""


@lru_cache(maxsize=REMEMBERED)
def refuse_host(host_header: bytes | None, own_names: frozenset[str]) -> str | None:
    """Why a request with this `Host` is refused, as a sentence; `None`: it may pass.

    `own_names` are this machine's names and addresses, in lower case. Browsers always send a `Host`, so a request
    without one comes from no web page.
    """
    if not host_header or not host_header.strip():
        return None
    text = host_header.strip().decode("latin-1").lower()
    name = _name_of(text)
    if name is None:
        return f"the Host header is not a host: {_quote(text)}"
    if name in own_names or name == "localhost" or name.endswith(_LOCAL_ENDINGS):
        return None
    address = _parse_address(name)
    if address is None:
        return (
            f"the Host header says {_quote(name)}, which may be any web site's name for this machine: "
            "use localhost or 127.0.0.1 in the address"
        )
    if _is_near(address) or str(address) in own_names:
        return None
    return f"the Host header says {_quote(name)}, which is no address of this machine: use localhost or 127.0.0.1"


def _name_of(text: str) -> str | None:
    """Without port, brackets, zone and the dot at the end."""
    found = _HOST.fullmatch(text)
    if found is not None:
        return found["literal"] or found["name"].removesuffix(".") or None
    # Some clients leave out the brackets.
    return text if isinstance(_parse_address(text), IPv6Address) else None


def _parse_address(name: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(name)
    except ValueError:
        return None
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address


def _is_near(address: IPv4Address | IPv6Address) -> bool:
    return (
        address.is_loopback
        or address.is_unspecified
        or any(address in network for network in _PRIVATE if network.version == address.version)
    )


def _quote(text: str) -> str:
    return ascii(text[:100])

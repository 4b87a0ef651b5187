"""Which addresses reach this machine only."""

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether a host name or address (IPv6 with or without brackets) reaches this machine only."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False

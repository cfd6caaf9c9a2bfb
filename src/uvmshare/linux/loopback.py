"""Which addresses never leave their machine.

What lives here: reading an address. What must not: what that allows.
"""

from __future__ import annotations

import ipaddress

__all__ = ["is_loopback", "numeric"]


def numeric(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return a numeric address; one of IPv4 that is mapped into IPv6 is that of IPv4. Raises `ValueError`."""
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def is_loopback(host: str) -> bool:
    """Say whether a host is loopback's: a numeric address of it, or ``localhost``. No other name is."""
    try:
        return numeric(host).is_loopback
    except ValueError:
        return host == "localhost"

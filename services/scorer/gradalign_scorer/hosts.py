"""Addresses to listen on, as people write them: names, IPv4, and IPv6 with or without brackets."""

from __future__ import annotations

import ipaddress

__all__ = ["authority", "bare", "is_loopback", "reachable"]


def bare(host: str) -> str:
    """The host without the brackets that an IPv6 address has in a URL."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return _plain(host).is_loopback
    except ValueError:
        return host.lower().removesuffix(".") == "localhost"


def reachable(host: str) -> str:
    """An address at which this machine reaches what listens on `host`: loopback where that is every address."""
    try:
        address = ipaddress.ip_address(bare(host))
        if not _plain(host).is_unspecified:
            return bare(host)
    except ValueError:
        return host
    return "::1" if address.version == 6 and not address.ipv4_mapped else "127.0.0.1"


def authority(host: str, port: int | str) -> str:
    """Host and port as a URL has them: an IPv6 address in brackets."""
    name = bare(host)
    return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"


def _plain(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The address; of one like ::ffff:127.0.0.1 the IPv4 address that it stands for.

    Raises:
        ValueError: it is a name.
    """
    address = ipaddress.ip_address(bare(host))
    return (address.ipv4_mapped or address) if isinstance(address, ipaddress.IPv6Address) else address

"""Where a client finds its scorers: one URL, or several replicas over one store, tried in turn."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import httpx

from gradalign.client.calls import Call, RetryPolicy
from gradalign.client.tls import trust_of
from gradalign.errors import InvalidValue, UnavailableError

__all__ = ["Address", "Replicas", "Tries", "addresses_of"]

T = TypeVar("T")


@dataclass(frozen=True)
class Address:
    """One scorer.

    Attributes:
        base_url: what paths are added to.
        uds: the Unix-domain socket to reach it by; None for TCP.
        verify: what its certificate is verified by.
    """

    base_url: str
    uds: str | None
    verify: ssl.SSLContext | bool


def addresses_of(base_url: str | Sequence[str], ca_file: str | os.PathLike[str] | None) -> list[Address]:
    """The addresses that a client's arguments name.

    Raises:
        InvalidValue: there is none, one of them twice, or one that cannot be used.
    """
    urls = [base_url] if isinstance(base_url, str) else list(base_url)
    if not urls or len(set(urls)) < len(urls):
        raise InvalidValue(
            f"the scorer's URLs are {urls!r}; expected one URL, or a list of distinct ones of scorers that share a store.",
            param="base_url",
        )
    return [Address(*_taken_apart(url), trust_of(url, ca_file)) for url in urls]


def _taken_apart(url: str) -> tuple[str, str | None]:
    if url.startswith("unix:"):
        return "http://localhost", url.removeprefix("unix:").removeprefix("//")
    if not url.startswith(("http://", "https://")) or not _has_place(url):
        raise InvalidValue(
            f"the scorer's URL is {url!r}; expected http://host:port, https://host:port or unix:/path/to.sock, with an IPv6 "
            "address in brackets, as in http://[::1]:8000.",
            param="base_url",
        )
    return url.rstrip("/"), None


def _has_place(url: str) -> bool:
    """Whether a URL names a host, and a port that there can be."""
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL:
        return False
    return bool(parts.host) and (parts.port is None or 0 < parts.port < 65536)


class Replicas(Generic[T]):
    """A connection to each address, of which one is in use until it fails.

    Args:
        addresses: at least one.
        connect: makes the connection to an address.
    """

    def __init__(self, addresses: Sequence[Address], connect: Callable[[Address], T]) -> None:
        self._pairs = [(address, connect(address)) for address in addresses]
        self._at = 0

    @property
    def all(self) -> list[T]:
        """Every connection."""
        return [connection for _, connection in self._pairs]

    def current(self) -> tuple[int, Address, T]:
        """The position, address and connection to send to now."""
        at = self._at
        return at, *self._pairs[at]

    def leave(self, at: int) -> None:
        """Use the next one; does nothing where another thread has left position `at` already."""
        if self._at == at:
            self._at = (at + 1) % len(self._pairs)


class Tries(Generic[T]):
    """The tries of one call: each replica once without a wait between them, then the waits of the policy between rounds.

    Args:
        replicas: to try.
        policy: how often, and how long to wait.
        call: that is sent.
    """

    def __init__(self, replicas: Replicas[T], policy: RetryPolicy, call: Call[Any]) -> None:
        self._replicas = replicas
        self._policy = policy
        self._call = call
        self._failures = 0

    def next_delay(self, at: int, error: UnavailableError) -> float | None:
        """Seconds to wait before the next try, which another replica gets; None to give up.

        Args:
            at: the position that failed.
            error: how.
        """
        if not self._policy.allows(self._call, error):
            return None
        self._replicas.leave(at)
        self._failures += 1
        rounds, others = divmod(self._failures, len(self._replicas.all))
        return 0.0 if others else self._policy.delay(self._call, error, rounds - 1)

"""Where the store is: a URL taken apart, of one server, of a Redis Cluster, or of the Sentinels that know the primary.

    redis://user:password@host:6379/0                     one server; rediss:// by TLS
    unix:///path/to.sock                                  one server of this machine
    redis+cluster://user:password@host1:7000,host2:7001   some nodes of a cluster, which name the others
    redis+sentinel://user:password@host1:26379,host2:26379/service/0?sentinel_password=...

One server's URL is redis-py's own, which reads it. redis-py has none for the other two, so they are its URL with several
hosts, and with the name of the service before the number of the database, as other Python libraries write them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from redis.asyncio.connection import parse_url

__all__ = ["QUOTING", "StoreURL"]

QUOTING = "In a password write % # / ? [ ] as %25 %23 %2F %3F %5B %5D; all other ASCII characters stand as they are."
_SINGLE = ("redis", "rediss", "unix")
_MANY = re.compile(
    r"(?P<scheme>redis|rediss)\+(?P<kind>cluster|sentinel)://(?P<place>[^/?#]*)(?P<path>/[^?#]*)?(?:\?(?P<query>[^#]*))?"
)
_DEFAULT_PORTS = {"cluster": 6379, "sentinel": 26379}
_SSL = (
    "ssl_ca_certs",
    "ssl_ca_data",
    "ssl_cert_reqs",
    "ssl_certfile",
    "ssl_check_hostname",
    "ssl_ciphers",
    "ssl_keyfile",
    "ssl_min_version",
)
_OPTIONS = ("client_name", "health_check_interval")
_SENTINEL_LOGIN = ("sentinel_username", "sentinel_password")
_EXPECTED = {
    "single": "a URL that begins with redis://, rediss:// or unix://, as in redis://user:password@host:6379/0 or "
    "unix:///path/to.sock, with redis+cluster:// or rediss+cluster:// for a Redis Cluster, or with redis+sentinel:// or "
    f"rediss+sentinel:// for Sentinels. {QUOTING.rstrip('.')}",
    "cluster": "one or more nodes of the cluster, separated by commas, and no database but 0, as in "
    f"redis+cluster://user:password@host1:7000,host2:7001. {QUOTING.rstrip('.')}",
    "sentinel": "one or more Sentinels, separated by commas, and behind them the name of the service that they watch, as in "
    f"redis+sentinel://user:password@host1:26379,host2:26379/service/0. {QUOTING.rstrip('.')}",
}


@dataclass(frozen=True)
class StoreURL:
    """A store's URL, taken apart.

    Attributes:
        text: the URL.
        kind: one server, a cluster, or Sentinels.
        nodes: host and port of each node or Sentinel that the URL names; none for one server.
        service: that the Sentinels watch.
        tls: whether to speak TLS, to Sentinels as well as servers.
        options: redis-py's settings of a connection to a server, from user and password to certificates.
        sentinel_login: `username` and `password` of the Sentinels, where they have any.
    """

    text: str = field(repr=False)
    kind: Literal["single", "cluster", "sentinel"]
    nodes: tuple[tuple[str, int], ...] = ()
    service: str = ""
    tls: bool = False
    options: dict[str, Any] = field(default_factory=dict, repr=False)
    sentinel_login: dict[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, text: str) -> StoreURL:
        """Take a URL apart.

        Raises:
            ValueError: it is none, with what was expected; its password is not in the words.
        """
        if text.partition("://")[0] in _SINGLE:
            if not _has_place(text):
                raise ValueError(f"expected {_EXPECTED['single']}")
            return cls(text, "single")
        found = _MANY.fullmatch(text)
        if found is None:
            several = re.match(r"rediss?\+(cluster|sentinel)://", text)
            raise ValueError(f"expected {_EXPECTED[several[1] if several else 'single']}")
        return _several(cls, text, found)


def _several(cls: type[StoreURL], text: str, found: re.Match[str]) -> StoreURL:
    kind: Any = found["kind"]
    login, _, hosts = found["place"].rpartition("@")
    nodes = tuple(_node(host, number, kind) for number, host in enumerate(hosts.split(","), start=1))
    service, database = _path(found["path"] or "", kind)
    tls = found["scheme"] == "rediss"
    query = found["query"] or ""
    _check_options(query, kind, tls)
    options = _options(login, query, kind)
    sentinel_login = {name.removeprefix("sentinel_"): options.pop(name) for name in _SENTINEL_LOGIN if name in options}
    del options["host"]
    if database:
        options["db"] = database
    return cls(text, kind, nodes, service, tls, options, sentinel_login)


def _options(login: str, query: str, kind: str) -> dict[str, Any]:
    """User, password and options, read by redis-py as it reads those of one server."""
    try:
        return dict(parse_url(f"redis://{login}{'@' * bool(login)}host?{query}"))
    except ValueError as error:
        raise ValueError(f"{str(error).rstrip('.')}: expected {_EXPECTED[kind]}") from None


# What is quoted below is no part of a password, even where one holds a bare '/' or '?' and so is cut there.


def _node(text: str, number: int, kind: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        port = _DEFAULT_PORTS[kind] if parts.port is None else parts.port
        host = parts.hostname
    except ValueError:
        host, port = None, 0
    if not host or port == 0 or text.endswith(":"):
        raise ValueError(f"its host {number} is none, or has a port that is none: expected {_EXPECTED[kind]}")
    return unquote(host), port


def _path(path: str, kind: str) -> tuple[str, int]:
    service, _, database = path.removeprefix("/").rstrip("/").partition("/")
    if kind == "cluster":
        if service not in ("", "0") or database:
            raise ValueError(f"it names a database, and a cluster has only 0: expected {_EXPECTED[kind]}")
        return "", 0
    if not service or "@" in path:
        raise ValueError(f"it names no service: expected {_EXPECTED[kind]}")
    if not (database == "" or database.isdecimal()):
        raise ValueError(f"its database is no number: expected {_EXPECTED[kind]}")
    return unquote(service), int(database or 0)


def _check_options(query: str, kind: str, tls: bool) -> None:
    known = (*_OPTIONS, *(_SSL if tls else ()), *(_SENTINEL_LOGIN if kind == "sentinel" else ()))
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in _SSL and not tls:
            raise ValueError(f"{name} is for TLS: begin the URL with rediss+{kind}://")
        if name not in known:
            shown = "one of its options" if "@" in query else f"its option {name!r}"
            raise ValueError(f"{shown} is unknown: expected {', '.join(known)}")
        if name == "ssl_cert_reqs" and value not in ("none", "optional", "required"):
            raise ValueError(f"ssl_cert_reqs is {value!r}: expected none, optional or required")


def _has_place(url: str) -> bool:
    """Whether one server's URL can be taken apart into a place and, where it has one, the number of a database."""
    try:
        parts = urlsplit(url)
        if parts.fragment or "@" in parts.query:  # of a password with a bare '#' or '?'
            return False
        database = parts.path.strip("/")
        return bool(parts.path) if parts.scheme == "unix" else parts.port != 0 and (not database or database.isdigit())
    except ValueError:
        return False

"""The failures of the store in our own words, with what to do about them."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from redis.asyncio.sentinel import MasterNotFoundError
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterError,
    RedisClusterException,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from gradalign import Unavailable
from gradalign_scorer.store.server.serverstate import ACL_USER, OLD_SERVER
from gradalign_scorer.storeurl import QUOTING

__all__ = ["store_errors"]


@contextmanager
def store_errors() -> Iterator[None]:
    """Turn the store's failures into Unavailable, with what to do about them."""
    try:
        yield
    except (RedisError, RedisClusterException, OSError) as error:
        raise _unavailable(_cause(error)) from error
    except (AttributeError, RuntimeError) as error:
        if not _in_library(error):
            raise
        raise Unavailable(
            "a connection to the store was closed just as it was taken up: retry.", retry_after=1.0
        ) from error


def _in_library(error: Exception) -> bool:
    """Whether redis-py raised it, or what it stands on.

    When a node fails, a client of several closes its idle connections, and one of them may be taken up by another request
    before it is closed. That request then meets a writer that is gone.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return frames[-1].f_globals["__name__"].partition(".")[0] in ("redis", "asyncio", "uvloop")


def _cause(error: Exception) -> Exception:
    """What stopped a cluster's client, which wraps it in words of its own; the error itself where nothing did."""
    at: BaseException | None = error
    while isinstance(at, RedisClusterException):
        at = at.__cause__ or at.__context__
    return at if isinstance(at, RedisError | OSError) else error


def _unavailable(error: Exception) -> Unavailable:
    if isinstance(error, BusyLoadingError):
        return Unavailable("the store is loading its data from disk; retry.", retry_after=2.0)
    if isinstance(error, RedisConnectionError | RedisTimeoutError | OSError):
        return Unavailable(_absence(error), retry_after=1.0)
    if isinstance(error, ResponseError):
        return Unavailable(f"the store refused the command: {error}. {_advice(error)}", retry_after=2.0)
    if isinstance(error, ClusterError):
        return Unavailable(
            "the run's slot is moving between nodes of the cluster, and nothing ran: retry.", retry_after=1.0
        )
    return Unavailable(f"the store failed ({type(error).__name__}: {error}).", retry_after=2.0)


def _absence(error: Exception) -> str:
    words = str(error)
    if _LOGIN_UNASKED in words:
        return f"the store asks for no password ({error}); leave it out of GRADALIGN_REDIS_URL."
    # A refused login on a fresh connection comes as a plain ConnectionError with the server's words.
    if isinstance(error, AuthenticationError) or any(each in words for each in _LOGIN_REFUSED):
        return (
            f"the store refuses the scorer ({error}); give user and password in GRADALIGN_REDIS_URL, as in "
            f"redis://user:password@host:6379/0. {QUOTING}"
        )
    if isinstance(error, MasterNotFoundError):
        asked = _SENTINEL_CLIENT.sub(_PLACE, words)
        return (
            f"no Sentinel names a primary ({asked}). One is named once a replica has taken over: retry. Else check the "
            "Sentinels, the name of the service and the Sentinels' password (sentinel_password) in GRADALIGN_REDIS_URL."
        )
    for each, advice in _LOGIN_ADVICE.items():
        if each in words:
            return f"the store refuses the scorer ({error}). {advice}"
    return (
        f"the store does not answer ({type(error).__name__}: {error}). Nothing is lost that was acknowledged; retry, and "
        "check GRADALIGN_REDIS_URL and the server behind it."
    )


# The library shows each Sentinel that it asked as a client with all its settings.
_SENTINEL_CLIENT, _PLACE = (
    re.compile(r"<redis\.asyncio\.client\.Redis\(.*?,host=([^,]+),port=(\d+),.*?\)>\)>\)>"),
    r"\1:\2",
)
_LOGIN_REFUSED = ("Authentication required", "username-password pair")
_LOGIN_UNASKED = "called without any password configured"
_NOT_SINGLE = (
    "It is a Redis Cluster: begin GRADALIGN_REDIS_URL with redis+cluster://, or with rediss+cluster:// for TLS."
)
_NOT_ALLOWED = f"Let its user do what the store needs, as by `{ACL_USER}`."
_LOGIN_ADVICE = {
    "protected mode": "Give it a password, or let it listen on an address that this machine alone reaches.",
    "invalid DB index": "It has fewer databases: end GRADALIGN_REDIS_URL in /0.",
    "DB index is out of range": "It has fewer databases: end GRADALIGN_REDIS_URL in /0.",
    "max number of clients": "Raise its maxclients, or close other clients.",
    "no permissions": _NOT_ALLOWED,
}
_ADVICE = {
    "OOM": "It is full: raise its maxmemory, or DELETE runs that are over.",
    "MISCONF": "It cannot persist to disk: free space on its volume.",
    "READONLY": "It is a read-only replica: point GRADALIGN_REDIS_URL at the primary.",
    "MASTERDOWN": "It is a replica that lost its primary: point GRADALIGN_REDIS_URL at the primary.",
    "NOREPLICAS": "It has fewer replicas than its min-replicas-to-write: bring them back, or lower that.",
    "MOVED": _NOT_SINGLE,
    "ASK": _NOT_SINGLE,
    "CROSSSLOT": _NOT_SINGLE,
    "CLUSTERDOWN": "It is in cluster mode and serves no key: GET /readyz says what to do.",
    "NOPERM": _NOT_ALLOWED,
    "BUSY": "A script of another of its clients has run for too long: end it by SCRIPT KILL.",
    "WRONGTYPE": "Another program wrote a key that begins with gradalign:, so give the scorer a server of its own.",
}


def _advice(error: ResponseError) -> str:
    if "cluster support disabled" in str(error):
        return "It is a server of its own: begin GRADALIGN_REDIS_URL with redis://, or with rediss:// for TLS."
    if any(words in str(error) for words in ("compiling script", "unknown command", "unknown subcommand")):
        return OLD_SERVER
    if "no permissions" in str(error):  # within a script it has another code
        return _NOT_ALLOWED
    code = getattr(error, "status_code", None) or str(error).split(" ")[0]
    return _ADVICE.get(code, "Nothing of this request was stored; retry.")

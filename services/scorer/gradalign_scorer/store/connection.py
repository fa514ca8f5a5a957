"""The connection to the store: its scripts, its time limits, and its failures in our own words."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import msgpack
import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.exceptions import AuthenticationError, BusyLoadingError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from gradalign import Unavailable
from gradalign_scorer.settings import QUOTING
from gradalign_scorer.store.serverstate import ACL_USER, OLD_SERVER, server_state

__all__ = ["PART", "REPLY_SECONDS", "Connection", "Tally"]

CONNECT_SECONDS = 2.0
REPLY_SECONDS = 10.0
PART = 10_000
"""Fields of one reply, between which the server does other things."""
MAX_CONNECTIONS = 64
_RETRIES = 3
_FAULT_SECONDS = 10.0
"""What somebody has to mend is not mended sooner."""

# A script's parts, in order, and its flags. A shebang makes the server refuse the whole script up front where it is full,
# read-only or unable to persist, instead of failing behind the first write.
_SCRIPTS = {
    "commit_scores": ("", ("replies", "guard", "problem", "commit_scores")),
    "commit_refresh": ("", ("replies", "guard", "commit_refresh")),
    "commit_selection": ("", ("replies", "guard", "problem", "commit_selection")),
    "sort": ("", ("problem", "sort")),
    "snapshot": ("", ("snapshot",)),
    "delete_run": (" flags=allow-oom", ("delete_run",)),  # deleting is what helps a full store
    "stored_reply": (" flags=no-writes", ("replies", "stored_reply")),
    "page": (" flags=no-writes", ("page",)),
}


def _sources() -> Mapping[str, str]:
    folder = files("gradalign_scorer.store")
    return {
        name: f"#!lua{flags}\n" + "\n".join((folder / f"{part}.lua").read_text(encoding="utf-8") for part in parts)
        for name, (flags, parts) in _SCRIPTS.items()
    }


@dataclass
class Tally:
    """What went wrong with a connection.

    Attributes:
        retries: tries that were made again.
        failures: calls that failed for good.
    """

    retries: int = 0
    failures: int = 0


class _CountedRetry(Retry):
    """Tells of every try after the first."""

    def __init__(self, tell: Callable[[], None], *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._tell = tell

    async def call_with_retry(self, do: Callable[[], Awaitable[Any]], *arguments: Any, **settings: Any) -> Any:
        """As the library's."""
        tries = 0

        async def told() -> Any:
            nonlocal tries
            tries += 1
            if tries > 1:
                self._tell()
            return await do()

        return await super().call_with_retry(told, *arguments, **settings)


class Connection:
    """A pooled connection to a Redis-protocol server of version 7 or later.

    Reads and idempotent scripts are tried again when a connection breaks; others never are, because a lost reply does
    not say whether the script ran. (The library's default tries everything ten times again.) A deadline bounds all
    tries together, so a server that hangs costs about one `reply_seconds`.

    Attributes:
        tally: of what went wrong.

    Args:
        url: `redis://`, `rediss://` or `unix://`.
        reply_seconds: longest wait for a reply, and for a free connection.
    """

    def __init__(self, url: str, *, reply_seconds: float = REPLY_SECONDS) -> None:
        self._seconds = reply_seconds + CONNECT_SECONDS
        self.tally = tally = Tally()

        def retried() -> None:  # a plain function, since the library copies its retry deeply for each connection
            tally.retries += 1

        backoff = ExponentialBackoff(cap=0.5, base=0.05)
        patient = _CountedRetry(retried, backoff, _RETRIES, supported_errors=(RedisConnectionError,))
        self.client = _client(url, patient, reply_seconds)
        self._once = _client(url, Retry(NoBackoff(), 0), reply_seconds)
        self._scripts = {name: self.client.register_script(source) for name, source in _sources().items()}
        self._loaded = False

    async def run(self, name: str, keys: Sequence[str], arguments: Sequence[Any], *, repeatable: bool) -> list[Any]:
        """Run a script; its reply is a list whose first element is a status word."""
        async with self.guarded():
            client = self.client if repeatable else self._once
            reply: list[Any] = await self._scripts[name](keys=keys, args=arguments, client=client)
            return reply

    async def fields(self, key: str, names: Sequence[str]) -> list[bytes | None]:
        """Fields of a hash, in parts, between which other requests are served; None for those that it has not."""
        found: list[bytes | None] = []
        for start in range(0, len(names), PART):
            part = names[start : start + PART]
            async with self.guarded():
                found += await self.client.hmget(key, part)
        return found

    async def commit(
        self, name: str, keys: Sequence[str], request: Mapping[str, Any], arguments: Sequence[Any]
    ) -> list[Any]:
        """Run a guarded script with its request map; one with a request id is safe to try again."""
        packed = msgpack.packb(request, use_bin_type=False)  # the Lua library knows no bin type
        return await self.run(name, keys, [packed, *arguments], repeatable=bool(request["request_id"]))

    @asynccontextmanager
    async def guarded(self, most: float = math.inf) -> AsyncIterator[None]:
        """Bounds what runs inside by the deadline, and turns the store's failures into Unavailable.

        Args:
            most: a nearer deadline, in seconds.
        """
        try:
            with _store_errors():
                async with asyncio.timeout(min(self._seconds, most)):
                    yield
        except Unavailable:
            self.tally.failures += 1
            raise

    async def check(self, seconds: float) -> tuple[str, ...]:
        """Find out whether the server can hold the store; what may go wrong with it some day.

        Args:
            seconds: longest wait.

        Raises:
            Unavailable: it does not answer, or cannot hold the store, and why.
        """
        async with self.guarded(seconds):
            state = await server_state(self.client)
            if state.fault is not None:
                raise Unavailable(state.fault, retry_after=_FAULT_SECONDS)
            if not self._loaded:
                for script in self._scripts.values():
                    await self.client.script_load(script.script)
                self._loaded = True
            await self.client.ping()
        return state.warnings

    async def close(self) -> None:
        """Close both pools."""
        await self.client.aclose()
        await self._once.aclose()


def _client(url: str, retry: Retry, reply_seconds: float) -> Any:
    pool = redis.BlockingConnectionPool.from_url(
        url,
        retry=retry,
        max_connections=MAX_CONNECTIONS,
        timeout=reply_seconds,
        socket_connect_timeout=CONNECT_SECONDS,
        socket_timeout=reply_seconds,
        protocol=2,  # under 3 the pool hands out connections that the server has closed
    )
    return redis.Redis.from_pool(pool)


@contextmanager
def _store_errors() -> Iterator[None]:
    """Turn the store's failures into Unavailable, with what to do about them."""
    try:
        yield
    except BusyLoadingError as error:
        raise Unavailable("the store is loading its data from disk; retry.", retry_after=2.0) from error
    except (RedisConnectionError, RedisTimeoutError, OSError) as error:
        raise Unavailable(_absence(error), retry_after=1.0) from error
    except ResponseError as error:
        raise Unavailable(f"the store refused the command: {error}. {_advice(error)}", retry_after=2.0) from error
    except RedisError as error:
        raise Unavailable(f"the store failed ({type(error).__name__}: {error}).", retry_after=2.0) from error


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
    for each, advice in _LOGIN_ADVICE.items():
        if each in words:
            return f"the store refuses the scorer ({error}). {advice}"
    return (
        f"the store does not answer ({type(error).__name__}: {error}). Nothing is lost that was acknowledged; retry, and "
        "check GRADALIGN_REDIS_URL and the server behind it."
    )


_LOGIN_REFUSED = ("Authentication required", "username-password pair")
_LOGIN_UNASKED = "called without any password configured"
_NOT_SINGLE = "It is a Redis Cluster, where a run lives on one node: point GRADALIGN_REDIS_URL at a single server."
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
    if any(words in str(error) for words in ("compiling script", "unknown command", "unknown subcommand")):
        return OLD_SERVER
    if "no permissions" in str(error):  # within a script it has another code
        return _NOT_ALLOWED
    code = getattr(error, "status_code", None) or str(error).split(" ")[0]
    return _ADVICE.get(code, "Nothing of this request was stored; retry.")

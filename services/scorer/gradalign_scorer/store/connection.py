"""The connection to the store: its scripts, its time limits, and its failures in our own words."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

import msgpack
import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.exceptions import (
    BusyLoadingError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from gradalign import Unavailable

__all__ = ["Connection", "Scripts", "store_errors"]

CONNECT_SECONDS = 2.0
REPLY_SECONDS = 10.0
_RETRIES = 3


class Scripts:
    """The Lua sources by name; a commit is the guard followed by its own part."""

    def __init__(self) -> None:
        folder = files("gradalign_scorer.store")
        source = {name: (folder / f"{name}.lua").read_text(encoding="utf-8") for name in _ALONE + _GUARDED + ("guard",)}
        self.sources: Mapping[str, str] = {name: source[name] for name in _ALONE} | {
            name: source["guard"] + source[name] for name in _GUARDED
        }


_ALONE = ("snapshot", "delete_run")
_GUARDED = ("commit_scores", "commit_refresh", "commit_selection")


class Connection:
    """A pooled connection to a Redis-protocol server.

    Reads and idempotent scripts are tried again when a connection breaks; others never are, because a lost reply does
    not say whether the script ran.

    Args:
        url: `redis://`, `rediss://` or `unix://`.
        reply_seconds: longest wait for a reply.
    """

    def __init__(self, url: str, *, reply_seconds: float = REPLY_SECONDS) -> None:
        options: dict[str, Any] = {"socket_connect_timeout": CONNECT_SECONDS, "socket_timeout": reply_seconds}
        patient = Retry(ExponentialBackoff(cap=0.5, base=0.05), _RETRIES)
        self.client: Any = redis.Redis.from_url(url, retry=patient, **options)
        self._once: Any = redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), **options)
        sources = Scripts().sources
        self._scripts = {name: self.client.register_script(source) for name, source in sources.items()}

    async def run(self, name: str, keys: Sequence[str], arguments: Sequence[Any], *, repeatable: bool) -> list[bytes]:
        """Run a script; its reply is a list whose first element is a status word."""
        async with store_errors():
            client = self.client if repeatable else self._once
            reply: list[bytes] = await self._scripts[name](keys=keys, args=arguments, client=client)
            return reply

    async def commit(self, name: str, keys: Sequence[str], request: Mapping[str, Any], *blobs: bytes) -> list[bytes]:
        """Run a guarded script with its request map; one with a request id is safe to try again."""
        packed = msgpack.packb(request, use_bin_type=False)  # the Lua library knows no bin type
        return await self.run(name, keys, [packed, *blobs], repeatable=bool(request["request_id"]))

    async def close(self) -> None:
        """Close both pools."""
        await self.client.aclose()
        await self._once.aclose()


@asynccontextmanager
async def store_errors() -> AsyncIterator[None]:
    """Turn the store's failures into Unavailable, with what to do about them."""
    try:
        yield
    except (OutOfMemoryError, ReadOnlyError, BusyLoadingError) as error:
        raise Unavailable(f"the store cannot write: {error}. {_advice(error)}", retry_after=2.0) from error
    except (RedisConnectionError, RedisTimeoutError, OSError) as error:
        raise Unavailable(
            f"the store does not answer ({type(error).__name__}: {error}). Nothing is lost that was acknowledged; retry, "
            "and check GRADALIGN_REDIS_URL and the server behind it.",
            retry_after=1.0,
        ) from error
    except ResponseError as error:
        raise Unavailable(f"the store refused the command: {error}. {_advice(error)}", retry_after=2.0) from error
    except RedisError as error:
        raise Unavailable(f"the store failed ({type(error).__name__}: {error}).", retry_after=2.0) from error


def _advice(error: Exception) -> str:
    text = str(error)
    if "OOM" in text or isinstance(error, OutOfMemoryError):
        return "It is full: raise its maxmemory, or DELETE runs that are over."
    if "MISCONF" in text or "No space" in text:
        return "It cannot persist to disk: free space on its volume."
    if "READONLY" in text or isinstance(error, ReadOnlyError):
        return "It is a read-only replica: point GRADALIGN_REDIS_URL at the primary."
    return "Nothing of this request was stored; retry."

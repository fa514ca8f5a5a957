"""The connection to the store: its scripts, its time limits, and its failures in our own words."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import msgpack
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError

from gradalign import Unavailable
from gradalign_scorer.store.keys import RUNS
from gradalign_scorer.store.server.clients import (
    CONNECT_SECONDS,
    MAX_CONNECTIONS,
    close_client,
    load_script,
    store_client,
)
from gradalign_scorer.store.server.failures import store_errors
from gradalign_scorer.store.server.serverstate import store_state
from gradalign_scorer.store.server.waiting import Wait
from gradalign_scorer.storeurl import StoreURL

__all__ = ["PART", "REPLY_SECONDS", "Connection", "Tally"]

REPLY_SECONDS = 10.0
PART = 10_000
"""Fields of one reply, between which the server does other things."""
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


@dataclass(frozen=True)
class _Script:
    source: str
    sha: str

    @classmethod
    def of(cls, source: str) -> _Script:
        return cls(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


class Connection:
    """A pooled connection to Redis-protocol servers of version 7 or later: one, a cluster, or the primary of Sentinels.

    Reads and idempotent scripts are tried again when a connection breaks; others never are, because a lost reply does
    not say whether the script ran. (The library's default tries everything ten times again.) Where a cluster's node
    says that a key has moved, nothing ran there, and the library asks the node that has it. A deadline bounds all tries
    together, so a server that hangs costs about one `reply_seconds`.

    Attributes:
        tally: of what went wrong.

    Args:
        url: `redis://`, `rediss://`, `unix://`, or one of several hosts (`StoreURL`).
        reply_seconds: longest wait for a reply, and for a free connection.
        wait: for replicas, before a write counts as acknowledged; None for none.
    """

    def __init__(self, url: str, *, reply_seconds: float = REPLY_SECONDS, wait: Wait | None = None) -> None:
        self._seconds = reply_seconds + CONNECT_SECONDS
        self.tally = tally = Tally()

        def retried() -> None:  # a plain function, since the library copies its retry deeply for each connection
            tally.retries += 1

        backoff = ExponentialBackoff(cap=0.5, base=0.05)
        patient = _CountedRetry(retried, backoff, _RETRIES, supported_errors=(RedisConnectionError,))
        place = StoreURL.parse(url)
        self.client = store_client(place, patient, reply_seconds)
        self._once = store_client(place, Retry(NoBackoff(), 0), reply_seconds)
        # One server's pool waits for a free connection by itself.
        self._free = nullcontext() if place.kind == "single" else asyncio.Semaphore(MAX_CONNECTIONS)
        self._scripts = {name: _Script.of(source) for name, source in _sources().items()}
        self._loaded = False
        self._wait, self._several = wait, place.kind == "cluster"

    async def run(
        self, name: str, keys: Sequence[str], arguments: Sequence[Any], *, repeatable: bool, confirmed: bool = False
    ) -> list[Any]:
        """Run a script; its reply is a list whose first element is a status word.

        Args:
            name: of the script.
            keys: that it touches, all of one run.
            arguments: of the script.
            repeatable: whether running it twice is as good as once.
            confirmed: whether its reply acknowledges a write, and so waits for replicas where they are asked for.
        """
        script, wait = self._scripts[name], self._wait if confirmed else None
        async with self.guarded():
            client = self.client if repeatable and not (wait and self._several) else self._once

            async def once() -> list[Any]:
                if wait is not None:
                    return await wait.run(client, script.sha, keys, arguments)
                reply: list[Any] = await client.evalsha(script.sha, len(keys), *keys, *arguments)
                return reply

            try:
                return await once()
            except NoScriptError:  # of a server that was started again, or has just become the primary: nothing ran
                await load_script(client, script.source, keys[0])
                return await once()

    async def stored_reply(self, keys: Sequence[str], digest: bytes) -> list[Any]:
        """What the script of that name says; a reply that is there acknowledges its write, and waits as that did."""
        reply = await self.run("stored_reply", keys, [digest], repeatable=True)
        if reply[0] == b"stored" and self._wait is not None:
            reply = await self.run("stored_reply", keys, [digest], repeatable=True, confirmed=True)
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
        return await self.run(name, keys, [packed, *arguments], repeatable=bool(request["request_id"]), confirmed=True)

    @asynccontextmanager
    async def guarded(self, most: float = math.inf) -> AsyncIterator[None]:
        """Bounds what runs inside by the deadline, and turns the store's failures into Unavailable.

        Args:
            most: a nearer deadline, in seconds.
        """
        try:
            with store_errors():
                async with asyncio.timeout(min(self._seconds, most)), self._free:
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
            scripts = [] if self._loaded else [script.source for script in self._scripts.values()]
            replicas = self._wait.replicas if self._wait else 0
            state = await store_state(self.client, scripts, RUNS, replicas)
            if state.fault is not None:
                raise Unavailable(state.fault, retry_after=_FAULT_SECONDS)
            self._loaded = True
        return state.warnings

    async def close(self) -> None:
        """Close both pools."""
        await close_client(self.client)
        await close_client(self._once)

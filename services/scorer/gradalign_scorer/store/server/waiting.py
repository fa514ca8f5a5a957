"""A script whose reply waits until replicas have what it wrote.

The server's WAIT counts the replicas that have everything which came before it on the same connection. So the script, a
small write and WAIT are sent together on one. The small write is for a request that is sent again: its script writes
nothing, and WAIT would then count replicas that do not yet have what the first try wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from redis.asyncio.cluster import RedisCluster
from redis.exceptions import AskError, ClusterError, MovedError, RedisClusterException, RedisError, TryAgainError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from gradalign import Unavailable

__all__ = ["Wait"]

_MARKER_SECONDS = 60
_MOVES = 3


@dataclass(frozen=True)
class Wait:
    """How many replicas have to have a write before its reply is sent.

    Attributes:
        replicas: how many.
        seconds: longest wait for them.
    """

    replicas: int
    seconds: float

    async def run(self, client: Any, sha: str, keys: Sequence[str], arguments: Sequence[Any]) -> list[Any]:
        """Run a loaded script; its reply, once the replicas have what it wrote.

        Args:
            client: of redis-py; one of a cluster sends nothing again by itself.
            sha: of the script.
            keys: of one run, its `meta` first.
            arguments: of the script.

        Raises:
            Unavailable: they do not have it in time. It stands, and a repetition asks for the replicas again.
            RedisError, RedisClusterException, OSError: as of the script alone.
        """
        marker = f"{keys[0].rpartition(':')[0]}:waited"
        commands = [
            ("EVALSHA", sha, len(keys), *keys, *arguments),
            ("SET", marker, 1, "EX", _MARKER_SECONDS),
            ("WAIT", self.replicas, round(self.seconds * 1000)),
        ]
        reply, marked, confirmed = await _together(client, marker, commands)
        if isinstance(reply, Exception):
            raise reply
        if reply[0] not in (b"ok", b"stored"):
            return list(reply)
        if reply[0] == b"stored" and isinstance(marked, Exception):
            raise marked
        if isinstance(confirmed, Exception):
            raise confirmed
        if confirmed < self.replicas:
            raise Unavailable(
                f"the request is stored, but {confirmed} of the {self.replicas} replicas that GRADALIGN_REDIS_WAIT_REPLICAS "
                f"asks for had it within {self.seconds:g} s: send it again under its request id, and see to the replicas.",
                retry_after=1.0,
            )
        return list(reply)


async def _together(client: Any, key: str, commands: Sequence[Sequence[Any]]) -> list[Any]:
    """The replies, or errors, to commands that are sent on one connection to where a key lives."""
    if isinstance(client, RedisCluster):
        return await _on_one_node(client, key, commands)
    async with client.pipeline(transaction=False) as pipe:
        for command in commands:
            pipe.execute_command(*command)
        replies: list[Any] = await pipe.execute(raise_on_error=False)
        return replies


async def _on_one_node(client: RedisCluster, key: str, commands: Sequence[Sequence[Any]]) -> list[Any]:
    for _ in range(_MOVES):
        await client.initialize()
        node = client.get_node_from_key(key)
        try:
            async with client.pipeline(transaction=False) as pipe:
                for command in commands:
                    pipe.execute_command(*command, target_nodes=node)
                replies: list[Any] = await pipe.execute(raise_on_error=False, allow_redirections=False)
        except (RedisError, RedisClusterException, OSError):
            await _find_again(client, key)
            raise
        first = replies[0]
        if not isinstance(first, AskError | TryAgainError):  # MOVED is an ASK to the library, and nothing ran of either
            if isinstance(first, RedisConnectionError | RedisTimeoutError):
                await _find_again(client, key)
            return replies
        if not isinstance(first, MovedError):
            break
        await _find_again(client, key)
    raise ClusterError


async def _find_again(client: RedisCluster, key: str) -> None:
    """Let the client see where a key lives now: only commands sent one by one teach it that."""
    with suppress(RedisError, RedisClusterException, OSError):
        await client.exists(key)

"""redis-py's client for each kind of store: one server, the primary that Sentinels name, or a cluster."""

from __future__ import annotations

from typing import Any

import redis.asyncio as redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff

from gradalign_scorer.storeurl import StoreURL

__all__ = ["CONNECT_SECONDS", "MAX_CONNECTIONS", "close_client", "load_script", "store_client"]

CONNECT_SECONDS = 2.0
MAX_CONNECTIONS = 64
_SENTINEL_SECONDS = 1.0
"""A Sentinel that hangs costs this once; the next one is asked, and first from then on."""


def store_client(url: StoreURL, retry: Retry, reply_seconds: float) -> Any:
    """A client with a pool of connections; nothing is sent yet.

    Args:
        url: of the store.
        retry: how often a command whose connection broke is sent again.
        reply_seconds: longest wait for a reply, and for a free connection.
    """
    settings: dict[str, Any] = {
        "retry": retry,
        "socket_connect_timeout": CONNECT_SECONDS,
        "socket_timeout": reply_seconds,
        "protocol": 2,  # under 3 the pool hands out connections that the server has closed
    }
    if url.kind == "cluster":
        return _cluster(url, settings)
    if url.kind == "sentinel":
        return _of_sentinels(url, settings)
    pool = redis.BlockingConnectionPool.from_url(
        url.text, max_connections=MAX_CONNECTIONS, timeout=reply_seconds, **settings
    )
    return redis.Redis.from_pool(pool)


async def load_script(client: Any, source: str, key: str) -> None:
    """Load a script where a key lives: of a cluster's primaries that one has to be there, and no other."""
    if isinstance(client, RedisCluster):
        await client.execute_command("SCRIPT LOAD", source, target_nodes=client.get_node_from_key(key))
    else:
        await client.script_load(source)


async def close_client(client: Any) -> None:
    """Close every connection of a client, those to Sentinels too, and those that a cluster was to be asked again by."""
    await client.aclose()
    if isinstance(client, RedisCluster):
        await client.nodes_manager.aclose()
        await client.nodes_manager.aclose("startup_nodes")
    elif isinstance(client.connection_pool, SentinelConnectionPool):
        await client.connection_pool.sentinel_manager.aclose()


def _cluster(url: StoreURL, settings: dict[str, Any]) -> RedisCluster:
    return _Cluster(
        startup_nodes=[ClusterNode(host, port) for host, port in url.nodes],
        ssl=url.tls,
        # The pools of a cluster's nodes do not wait for a free connection, so the caller counts, and these never run out.
        max_connections=2 * MAX_CONNECTIONS,
        # Of a slot that moved its own place is noted. To ask for all places closes every connection, replies to come or not.
        reinitialize_steps=0,
        **settings,
        **url.options,
    )


class _Cluster(RedisCluster):
    """A cluster's client that follows a slot to a node which has just joined."""

    def get_node(
        self, host: str | None = None, port: int | None = None, node_name: str | None = None
    ) -> ClusterNode | None:
        """As the library's, which knows the nodes that it saw when it last asked for them."""
        known = super().get_node(host, port, node_name)
        if known is None and node_name is not None:
            place, _, number = node_name.rpartition(":")
            known = ClusterNode(place, int(number), "primary", **self.connection_kwargs)
            self.nodes_manager.nodes_cache[known.name] = known
        return known


def _of_sentinels(url: StoreURL, settings: dict[str, Any]) -> redis.Redis:
    tls = {name: value for name, value in url.options.items() if name.startswith("ssl_")}
    login = {
        "retry": Retry(NoBackoff(), 0),  # the next Sentinel is tried instead
        "socket_connect_timeout": _SENTINEL_SECONDS,
        "socket_timeout": _SENTINEL_SECONDS,
        "protocol": 2,
        "ssl": url.tls,
        **tls,
        **url.sentinel_login,
    }
    sentinel = Sentinel(list(url.nodes), sentinel_kwargs=login)  # type: ignore[no-untyped-call]
    client: redis.Redis = sentinel.master_for(
        url.service,
        ssl=url.tls,
        max_connections=2 * MAX_CONNECTIONS,  # as of a cluster's nodes
        **settings,
        **url.options,
    )
    return client

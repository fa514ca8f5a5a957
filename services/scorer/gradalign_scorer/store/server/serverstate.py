"""Whether a server can hold the store, in words for whoever runs it: its version, cluster, role, and what it evicts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

__all__ = ["ACL_RULES", "ACL_USER", "OLD_SERVER", "ServerState", "store_state"]

OLDEST = (7, 0)  # the first whose scripts say in their first line what they do
_SLOTS = 16384
ACL_RULES = (
    "~gradalign:* +@read +@write +@connection -@dangerous +evalsha +script|load +info +cluster|info +cluster|slots"
)
"""What the store's user may do, and all that it needs."""
ACL_USER = f"ACL SETUSER gradalign on >PASSWORD {ACL_RULES}"
OLD_SERVER = "Its scripts need Redis 7.0 or later, or any Valkey: upgrade it, or unset GRADALIGN_REDIS_URL."


_DOWN = {"fail": "the store is in cluster mode and its cluster is down (cluster_state:fail): bring its nodes back."}
_NODE_SECONDS = 1.5


@dataclass(frozen=True)
class ServerState:
    """What a server says of itself.

    Attributes:
        fault: why it cannot hold the store until somebody acts, and what to do; None where it can.
        warnings: what it can do to the store some day, and how to prevent it.
        cluster: whether it is in cluster mode.
    """

    fault: str | None
    warnings: tuple[str, ...] = ()
    cluster: bool = False


async def store_state(client: Any, scripts: Sequence[str], names: str, replicas: int) -> ServerState:
    """The state of the server behind a connection, or of all primaries of a cluster.

    Args:
        client: of redis-py.
        scripts: to load where nothing stands against it, which shows whether they may be.
        names: key that is written with every run.
        replicas: that each write waits for.

    Raises:
        RedisError, RedisClusterException, OSError: no server answers, or one refuses a script.
    """
    if isinstance(client, RedisCluster):
        return await _cluster_state(client, scripts, names, replicas)
    state = await _server_state(client.info, replicas)
    if state.fault is None and state.cluster:
        state = replace(state, fault=await _slots_fault(client))
    if state.fault is None:
        for script in scripts:
            await client.script_load(script)
        await client.ping()
    return state


async def _server_state(info_of: Callable[[], Awaitable[Mapping[str, Any]]], replicas: int) -> ServerState:
    """The state by one INFO; a server that keeps that from us is taken as able."""
    try:
        info = await info_of()
    except ResponseError as error:
        return ServerState(
            None,
            (f"whether the store is new enough and evicts nothing cannot be seen ({error}): let its user run INFO.",),
        )
    return ServerState(_too_old(info) or _read_only(info), _warnings(info, replicas), bool(info.get("cluster_enabled")))


async def _cluster_state(client: RedisCluster, scripts: Sequence[str], names: str, replicas: int) -> ServerState:
    """What the primaries say together. One that is away is a warning: the runs on the others are served."""
    await client.initialize()
    await client.nodes_manager.initialize()  # look again: one that has become a replica still answers
    primaries = client.get_primaries()
    states = await asyncio.gather(
        *(_primary_state(client, node, scripts, replicas) for node in primaries), return_exceptions=True
    )
    found = [state for state in states if isinstance(state, ServerState)]
    errors = [state for state in states if isinstance(state, BaseException)]
    if not found or any(not isinstance(error, RedisConnectionError | RedisTimeoutError | OSError) for error in errors):
        raise errors[0]
    fault = next((state.fault for state in found if state.fault), None)
    away = [node for node, state in zip(primaries, states, strict=True) if isinstance(state, BaseException)]
    warnings = [warning for state in found for warning in state.warnings]
    if away:
        whose = "no run" if client.get_node_from_key(names) in away else "no run that lives there"
        warnings.append(
            f"of the store's {len(primaries)} primaries {', '.join(node.name for node in away)} does not answer: {whose} "
            "can be written until it is back, or one of its replicas has taken over."
        )
    return ServerState(fault, tuple(dict.fromkeys(warnings)), cluster=True)


async def _primary_state(client: RedisCluster, node: ClusterNode, scripts: Sequence[str], replicas: int) -> ServerState:
    async with asyncio.timeout(_NODE_SECONDS):
        state = await _server_state(lambda: client.execute_command("INFO", target_nodes=node), replicas)
        found: Mapping[str, str] = await client.execute_command("CLUSTER INFO", target_nodes=node)
        fault = state.fault or _DOWN.get(found.get("cluster_state", "ok"))
        if fault is None:
            for script in scripts:
                await client.execute_command("SCRIPT LOAD", script, target_nodes=node)
        return replace(state, fault=fault)


def _too_old(info: Mapping[str, Any]) -> str | None:
    version = str(info.get("redis_version", ""))
    numbers = version.split(".")[:2]
    if not all(number.isdigit() for number in numbers) or tuple(map(int, numbers)) >= OLDEST:
        return None
    return f"the store is Redis {version}. {OLD_SERVER}"


def _read_only(info: Mapping[str, Any]) -> str | None:
    if info.get("role") != "slave" or not info.get("slave_read_only", 1):
        return None
    primary = f"{info.get('master_host')}:{info.get('master_port')}"
    return f"the store is a read-only replica of {primary}: point GRADALIGN_REDIS_URL at the primary."


async def _slots_fault(client: Any) -> str | None:
    try:
        found: Mapping[str, str] = await client.execute_command("CLUSTER INFO")
    except ResponseError:
        return None  # a command that is refused or moved says so
    assigned = int(found.get("cluster_slots_assigned", _SLOTS))
    if assigned < _SLOTS:
        return (
            f"the store is in cluster mode and {assigned} of its {_SLOTS} slots are assigned, so that it serves no key: set "
            f"`cluster-enabled no`, or assign them all to it (`redis-cli CLUSTER ADDSLOTSRANGE 0 {_SLOTS - 1}`)."
        )
    if int(found.get("cluster_size", 1)) > 1:
        return (
            f"the store is a Redis Cluster of {found['cluster_size']} primaries: begin GRADALIGN_REDIS_URL with "
            "redis+cluster://, or with rediss+cluster:// for TLS."
        )
    return _DOWN.get(found.get("cluster_state", "ok"))


def _warnings(info: Mapping[str, Any], replicas: int) -> tuple[str, ...]:
    policy, found = str(info.get("maxmemory_policy", "noeviction")), int(info.get("connected_slaves", replicas))
    warnings = []
    if policy != "noeviction":
        warnings.append(
            f"the store's maxmemory-policy is {policy}: once it is full it takes problems, runs or stored replies away "
            "without a word. Set it to noeviction (`redis-cli CONFIG SET maxmemory-policy noeviction`, and in its "
            "configuration)."
        )
    if found < replicas:
        warnings.append(
            f"the store has {found} replicas, fewer than GRADALIGN_REDIS_WAIT_REPLICAS, {replicas}: writes get 503 until "
            "they are back. Bring them back, or lower it."
        )
    return tuple(warnings)

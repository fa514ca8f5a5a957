"""Whether a server can hold the store, in words for whoever runs it: its version, cluster, role, and what it evicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redis.exceptions import ResponseError

__all__ = ["ACL_RULES", "ACL_USER", "OLD_SERVER", "ServerState", "server_state"]

OLDEST = (7, 0)  # the first whose scripts say in their first line what they do
_SLOTS = 16384
ACL_RULES = "~gradalign:* +@read +@write +@connection -@dangerous +evalsha +script|load +info +cluster|info"
"""What the store's user may do, and all that it needs."""
ACL_USER = f"ACL SETUSER gradalign on >PASSWORD {ACL_RULES}"
OLD_SERVER = "Its scripts need Redis 7.0 or later, or any Valkey: upgrade it, or unset GRADALIGN_REDIS_URL."


@dataclass(frozen=True)
class ServerState:
    """What a server says of itself.

    Attributes:
        fault: why it cannot hold the store until somebody acts, and what to do; None where it can.
        warnings: what it can do to the store some day, and how to prevent it.
    """

    fault: str | None
    warnings: tuple[str, ...] = ()


async def server_state(client: Any) -> ServerState:
    """The state of the server behind a connection, by one INFO; a server that keeps that from us is taken as able."""
    try:
        info: Mapping[str, Any] = await client.info()
    except ResponseError as error:
        return ServerState(
            None,
            (f"whether the store is new enough and evicts nothing cannot be seen ({error}): let its user run INFO.",),
        )
    fault = _too_old(info) or _read_only(info)
    if fault is None and info.get("cluster_enabled"):
        fault = await _cluster_fault(client)
    return ServerState(fault, _warnings(info))


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


async def _cluster_fault(client: Any) -> str | None:
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
            f"the store is a Redis Cluster of {found['cluster_size']} primaries, and the scorer needs its keys on one: "
            "point GRADALIGN_REDIS_URL at a single server."
        )
    if found.get("cluster_state", "ok") != "ok":
        return "the store is in cluster mode and its cluster is down (cluster_state:fail): bring its nodes back."
    return None


def _warnings(info: Mapping[str, Any]) -> tuple[str, ...]:
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if policy == "noeviction":
        return ()
    return (
        f"the store's maxmemory-policy is {policy}: once it is full it takes problems, runs or stored replies away without "
        "a word. Set it to noeviction (`redis-cli CONFIG SET maxmemory-policy noeviction`, and in its configuration).",
    )

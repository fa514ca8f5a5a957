"""Copies of a run's whole state under a name, and its deletion."""

from __future__ import annotations

import dataclasses
import json
import time

from gradalign import RoundRecord, Unavailable
from gradalign_scorer.store.connection import Connection
from gradalign_scorer.store.keys import RUNS, RunKeys
from gradalign_scorer.store.refusals import fenced, run_not_found, snapshot_not_found

__all__ = ["copy_run", "delete_run"]

_DELETE_TRIES = 5


async def copy_run(
    connection: Connection,
    action: str,
    run_id: str,
    name: str,
    epoch: int | None,
    *,
    keep_rounds: int,
    reply_ttl: float,
) -> None:
    """Save a run under a name, or restore it from there, in one script.

    Args:
        connection: to the store.
        action: `save` or `restore`.
        run_id: the training job.
        name: of the snapshot.
        epoch: fencing token; None for none.
        keep_rounds: how long the stream of rounds may grow.
        reply_ttl: seconds after which a stored reply has expired by itself.

    Raises:
        NotFound: no such run or snapshot.
        Fenced: the epoch is lower than the run's.
    """
    keys, now = RunKeys(run_id), time.time()
    names = [keys.meta, keys.snapshots, *keys.parts(), *keys.snapshot(name)]
    record = RoundRecord(
        round=0, kind="restore", at=now, policy_version=await _saved_policy_version(connection, keys, name),
        validation_version=None, problems=0, selected=0, summary={"snapshot": name},
    )  # fmt: skip
    event = json.dumps(dataclasses.asdict(record))
    arguments = [action, name, now, -1 if epoch is None else epoch, event, keep_rounds, reply_ttl]
    # Copying the same state twice is copying it once.
    status, *details = await connection.run("snapshot", names, arguments, repeatable=True, confirmed=True)
    _raise_unless_ok(status, details, run_id, epoch, name)


async def _saved_policy_version(connection: Connection, keys: RunKeys, name: str) -> int:
    async with connection.guarded():
        version = await connection.client.hget(keys.snapshot(name)[0], "policy_version")
    return int(version or 0)


async def delete_run(connection: Connection, run_id: str, epoch: int | None) -> None:
    """Forget a run with its snapshots; stored replies to its requests count no more and expire by themselves.

    Raises:
        NotFound: no such run.
        Fenced: the epoch is lower than the run's.
    """
    keys = RunKeys(run_id)
    for _ in range(_DELETE_TRIES):
        async with connection.guarded():
            names = [name.decode() for name in await connection.client.smembers(keys.snapshots)]
        parts = [key for name in names for key in keys.snapshot(name)]
        targets = [keys.meta, keys.snapshots, *keys.parts()[1:], *parts]
        arguments = [-1 if epoch is None else epoch, *names]
        status, *details = await connection.run("delete_run", targets, arguments, repeatable=False)
        if status != b"snapshot_added":
            break
    else:
        raise Unavailable(
            "snapshots of the run are being taken all the while; delete it once they stop.", retry_after=1.0
        )
    _raise_unless_ok(status, details, run_id, epoch, "")
    async with connection.guarded():
        await connection.client.srem(RUNS, run_id)
        if await connection.client.exists(keys.meta):  # it began again meanwhile
            await connection.client.sadd(RUNS, run_id)


def _raise_unless_ok(status: bytes, details: list[bytes], run_id: str, epoch: int | None, name: str) -> None:
    if status == b"fenced":
        raise fenced(epoch, details[0].decode())
    if status == b"run_not_found":
        raise run_not_found(run_id)
    if status == b"snapshot_not_found":
        raise snapshot_not_found(run_id, name)

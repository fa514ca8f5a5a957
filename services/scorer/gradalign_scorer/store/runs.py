"""The store of all runs: one method for every read and every write the routes need."""

from __future__ import annotations

import dataclasses
import json
import time
import uuid
from collections.abc import Sequence
from typing import Any, Self

import msgpack

from gradalign import (
    Conflict,
    Fenced,
    NotFound,
    ProblemPage,
    ProblemState,
    ProjectionMismatch,
    RequestIdReused,
    RoundRecord,
    RunState,
    StalePolicy,
    WireError,
)
from gradalign_scorer.store.commits import Commit, RefreshCommit, ScoreCommit, SelectionCommit
from gradalign_scorer.store.connection import Connection, store_errors
from gradalign_scorer.store.keys import RUNS, RunKeys
from gradalign_scorer.store.records import ProblemColumns, RunRecord, ValidationRecord, problem_state

__all__ = ["RunStore", "VersionTakenError"]

DISCOUNT = 0.9
KEEP_ROUNDS = 10_000
KEEP_VALIDATIONS = 8
REPLY_SECONDS = 24 * 3600


class VersionTakenError(Exception):
    """Another refresh took the validation version; compute the commit again for the next one."""


class RunStore:
    """All curriculum state, in a Redis-protocol server. It holds nothing itself, so replicas may share a server.

    Every method raises Unavailable while the server is away, full or read-only.

    Args:
        connection: to the server.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._redis = connection.client

    @classmethod
    def connect(cls, url: str) -> Self:
        """A store behind a URL; nothing is sent yet."""
        return cls(Connection(url))

    async def close(self) -> None:
        """Close the connections."""
        await self._connection.close()

    async def ping(self) -> None:
        """Return once the server answers."""
        async with store_errors():
            await self._redis.ping()

    async def load_run(self, run_id: str) -> RunRecord | None:
        """The run's fields; None for a run never seen."""
        async with store_errors():
            raw = await self._redis.hgetall(RunKeys(run_id).meta)
        return RunRecord(run_id, _texts(raw)) if raw else None

    async def stored_reply(self, run: RunRecord | None, request_id: str | None, digest: bytes) -> bytes | None:
        """The reply to a request id that was committed before; RequestIdReused if its content was another."""
        if run is None or request_id is None:
            return None
        async with store_errors():
            raw = await self._redis.get(RunKeys(run.run_id).reply(request_id))
        if raw is None:
            return None
        saved = msgpack.unpackb(raw, raw=True)
        if saved[b"incarnation"].decode() != run.incarnation:
            return None
        if saved[b"digest"] != digest:
            raise _reused(request_id)
        reply: bytes = saved[b"reply"]
        return reply

    async def load_validation(self, run_id: str, version: int) -> ValidationRecord | None:
        """A validation gradient; None where that version was removed."""
        async with store_errors():
            packed = await self._redis.hget(RunKeys(run_id).validations, str(version))
        return None if packed is None else ValidationRecord.unpack(packed)

    async def load_problems(self, run_id: str, ids: Sequence[str] | None = None) -> ProblemColumns:
        """Records of the given problems, in their order; of all problems for None."""
        key = RunKeys(run_id).problems
        async with store_errors():
            if ids is None:
                everything = await self._redis.hgetall(key)
                return ProblemColumns.unpack([i.decode() for i in everything], list(everything.values()))
            return ProblemColumns.unpack(ids, await self._redis.hmget(key, list(ids)))

    async def commit_scores(self, commit: ScoreCommit) -> bytes:
        """Store the scores of a request; the reply to send, which a repetition gets from its first commit."""
        keys = RunKeys(commit.run_id)
        names = [keys.meta, keys.reply(commit.request_id), keys.problems, keys.priorities, keys.rounds]
        return await self._commit("commit_scores", names, commit)

    async def commit_refresh(self, commit: RefreshCommit) -> bytes:
        """Store a validation gradient and make it the current one.

        Raises:
            VersionTakenError: another refresh came first.
        """
        keys = RunKeys(commit.run_id)
        names = [keys.meta, keys.reply(commit.request_id), keys.validations, keys.rounds]
        return await self._commit("commit_refresh", names, commit, commit.validation.pack())

    async def commit_selection(self, commit: SelectionCommit) -> bytes:
        """Store which problems were picked."""
        keys = RunKeys(commit.run_id)
        names = [keys.meta, keys.reply(commit.request_id), keys.problems, keys.rounds]
        return await self._commit("commit_selection", names, commit)

    async def _commit(self, script: str, names: Sequence[str], commit: Commit, *blobs: bytes) -> bytes:
        record = dataclasses.asdict(commit.record)
        request = {
            **commit.arguments(),
            "now": time.time(),
            "incarnation": uuid.uuid4().hex,
            "round": json.dumps(record),
            "discount": DISCOUNT,
            "keep_rounds": KEEP_ROUNDS,
            "keep_validations": KEEP_VALIDATIONS,
            "reply_seconds": REPLY_SECONDS,
        }
        async with store_errors():
            # First, and idempotent: a crash behind it leaves a name without fields, which list_runs leaves out.
            await self._redis.sadd(RUNS, commit.run_id)
        status, *details = await self._connection.commit(script, names, request, *blobs)
        if status == b"ok":
            return commit.reply
        if status == b"stored":
            return details[0]
        if status == b"version_taken":
            raise VersionTakenError
        raise _refusal(status.decode(), [detail.decode() for detail in details], commit)

    async def list_runs(self) -> list[RunState]:
        """All runs, the one changed last first."""
        async with store_errors():
            names = sorted(name.decode() for name in await self._redis.smembers(RUNS))
            states = [await self._state(name) for name in names]
        return sorted((s for s in states if s), key=lambda state: -state.updated_at)

    async def run_state(self, run_id: str) -> RunState:
        """One run; NotFound for one never seen."""
        async with store_errors():
            state = await self._state(run_id)
        if state is None:
            raise run_not_found(run_id)
        return state

    async def _state(self, run_id: str) -> RunState | None:
        keys = RunKeys(run_id)
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hgetall(keys.meta)
            pipe.zcard(keys.priorities)
            raw, problems = await pipe.execute()
        return RunRecord(run_id, _texts(raw), problems).state() if raw else None

    async def page_problems(self, run_id: str, start: int, limit: int) -> ProblemPage:
        """Problems by priority, from the rank `start`; pages of a ranking that moves meanwhile may overlap."""
        await self.run_state(run_id)
        keys = RunKeys(run_id)
        async with store_errors():
            ids = await self._redis.zrange(keys.priorities, start, start + limit - 1)
            records = await self._redis.hmget(keys.problems, ids) if ids else []
        rows = [problem_state(i.decode(), record) for i, record in zip(ids, records, strict=True) if record]
        return ProblemPage(problems=rows, next=str(start + limit) if len(ids) == limit else None)

    async def problem(self, run_id: str, problem_id: str) -> ProblemState:
        """One problem with its history; NotFound for one never scored or picked."""
        async with store_errors():
            record = await self._redis.hget(RunKeys(run_id).problems, problem_id)
        if record is None:
            await self.run_state(run_id)
            raise NotFound(
                f"run {run_id!r} knows no problem {problem_id[:80]!r}; it knows those that were scored or picked. Check "
                "the id's spelling, and quote it in the URL.",
                param="problem_id",
            )
        return problem_state(problem_id, record, history=True)

    async def rounds(self, run_id: str, after: int, limit: int) -> list[RoundRecord]:
        """Committed requests with a number above `after`, oldest first."""
        await self.run_state(run_id)
        async with store_errors():
            entries = await self._redis.xrange(RunKeys(run_id).rounds, min=f"{after + 1}-0", count=limit)
        return [
            RoundRecord.from_map({**json.loads(fields[b"round"]), "round": int(entry.split(b"-")[0])})
            for entry, fields in entries
        ]

    async def snapshot(self, run_id: str, name: str, epoch: int | None) -> None:
        """Copy the whole state of a run under a name, replacing an earlier copy of that name."""
        await self._copy("save", run_id, name, epoch)

    async def restore(self, run_id: str, name: str, epoch: int | None) -> None:
        """Put a run back to a snapshot: its scores, priorities, policy version, validation gradient and rounds.

        The epoch does not go back. Stored replies stay: a repetition of an acknowledged request is answered as before.
        """
        await self._copy("restore", run_id, name, epoch)

    async def _copy(self, action: str, run_id: str, name: str, epoch: int | None) -> None:
        keys, now = RunKeys(run_id), time.time()
        names = [keys.meta, keys.snapshots, *keys.parts(), *keys.snapshot(name)]
        run = await self.load_run(run_id)
        record = RoundRecord(
            round=0, kind="restore", at=now, policy_version=run.policy_version if run else 0,
            validation_version=None, problems=0, selected=0, summary={"snapshot": name},
        )  # fmt: skip
        event = json.dumps(dataclasses.asdict(record))
        arguments = [action, name, now, -1 if epoch is None else epoch, event, KEEP_ROUNDS]
        # Copying the same state twice is copying it once.
        status, *details = await self._connection.run("snapshot", names, arguments, repeatable=True)
        _raise_unless_ok(status, details, run_id, epoch, name)

    async def delete_run(self, run_id: str, epoch: int | None) -> None:
        """Forget a run with its snapshots; replies to its old requests expire by themselves."""
        keys = RunKeys(run_id)
        async with store_errors():
            names = [name.decode() for name in await self._redis.smembers(keys.snapshots)]
        parts = [key for name in names for key in keys.snapshot(name)]
        targets = [keys.meta, keys.snapshots, *keys.parts()[1:], *parts]
        asked = -1 if epoch is None else epoch
        status, *details = await self._connection.run("delete_run", targets, [asked], repeatable=False)
        _raise_unless_ok(status, details, run_id, epoch, None)
        async with store_errors():
            await self._redis.srem(RUNS, run_id)


def _texts(raw: dict[bytes, bytes]) -> dict[str, str]:
    return {key.decode(): value.decode() for key, value in raw.items()}


def _reused(request_id: str | None) -> RequestIdReused:
    return RequestIdReused(
        f"request_id {request_id!r} was used before, for a request with another content; give every request an id of "
        "its own, and a retry the id and the content of its first try.",
        param="request_id",
        request_id=request_id,
    )


def run_not_found(run_id: str) -> NotFound:
    """The error for a run never seen."""
    return NotFound(
        f"there is no run {run_id!r}; a run begins with its first /refresh_validation or /score. GET /runs lists them.",
        param="run_id",
    )


def fenced(epoch: int | None, seen: int | str) -> Fenced:
    """The error for a writer that a newer one has replaced."""
    return Fenced(
        f"epoch {epoch} was sent and the run has seen epoch {seen}: another process has taken this run over. Stop this "
        "one, or start it again with a higher epoch.",
        param="epoch",
    )


def stale_policy(sent: int, seen: int | str) -> StalePolicy:
    """The error for a policy version that went backwards."""
    return StalePolicy(
        f"policy_version {sent} was sent and the run has seen {seen}; versions may not go backwards. After resuming from "
        "a checkpoint, restore the curriculum snapshot taken with it, or use another run_id.",
        param="policy_version",
    )


def projection_mismatch(sent: Any, held: Any) -> ProjectionMismatch:
    """The error for sketches made in another way than the run's."""
    different = sorted(key for key in held if held[key] != sent.get(key) and key != "id")
    return ProjectionMismatch(
        f"the sketches were made with {', '.join(f'{key}={sent[key]}' for key in different)}; the run's with "
        f"{', '.join(f'{key}={held[key]}' for key in different)}. Use the run's projection, or another run_id: such "
        "sketches cannot be compared. (Other `parameters` mean that the set of trainable parameters changed.)",
        param="projection",
    )


def _refusal(status: str, details: list[str], commit: Commit) -> WireError:
    if status == "fenced":
        return fenced(commit.epoch, details[0])
    if status == "stale_policy":
        return stale_policy(commit.policy_version, details[0])
    if status == "request_id_reused":
        return _reused(commit.request_id)
    if status == "not_found":
        return run_not_found(commit.run_id)
    if status == "projection_mismatch" and isinstance(commit, ScoreCommit | RefreshCommit):
        return projection_mismatch(commit.projection.to_map(), json.loads(details[0]))
    return Conflict(f"the run changed while the request was computed ({status}); send it again.")


def _raise_unless_ok(status: bytes, details: list[bytes], run_id: str, epoch: int | None, name: str | None) -> None:
    if status == b"fenced":
        raise fenced(epoch, details[0].decode())
    if status == b"run_not_found":
        raise run_not_found(run_id)
    if status == b"snapshot_not_found":
        raise NotFound(
            f"run {run_id!r} has no snapshot {name!r}; take one by POST /runs/{run_id}/snapshots/{name}.", param="name"
        )

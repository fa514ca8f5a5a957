"""The store of all runs: one method for every read and every write the routes need."""

from __future__ import annotations

import dataclasses
import heapq
import json
import time
import uuid
from collections.abc import Sequence
from typing import Self

from gradalign import NotFound, ProblemPage, ProblemState, RankingOutline, RoundRecord, RunState
from gradalign.wire.checks import shown
from gradalign_scorer.posterior.beliefs import Beliefs, parameters
from gradalign_scorer.ranking.predictor import Moments
from gradalign_scorer.store.commits import Commit, RefreshCommit, ScoreCommit, SelectionCommit
from gradalign_scorer.store.connection import PART, REPLY_SECONDS, Connection, Tally
from gradalign_scorer.store.keys import RUNS, RunKeys
from gradalign_scorer.store.outline import outline
from gradalign_scorer.store.records.cursors import decode_cursor, encode_cursor
from gradalign_scorer.store.records.problems import ProblemColumns, problem_state
from gradalign_scorer.store.records.runs import RunRecord
from gradalign_scorer.store.records.validations import ValidationRecord
from gradalign_scorer.store.refusals import (
    commit_refusal,
    fenced,
    request_id_reused,
    run_not_found,
)
from gradalign_scorer.store.server.waiting import Wait
from gradalign_scorer.store.snapshots import copy_run, delete_run
from gradalign_scorer.store.sorting import Sorting

__all__ = ["RunStore"]

RECENT_SHARE = 0.2
KEEP_ROUNDS = 10_000
KEEP_VALIDATIONS = 8
REPLY_TTL = 24 * 3600
_NAMES = 200
_PING_SECONDS = 2.0


class RunStore:
    """All curriculum state, in a Redis-protocol server. It holds nothing itself, so replicas may share a server.

    Every method raises Unavailable while the server is away, full or read-only, at the latest after the connection's
    `reply_seconds` and two more for connecting.

    Args:
        connection: to the server.
        reply_ttl: seconds for which the reply to a request id is kept.
    """

    def __init__(self, connection: Connection, *, reply_ttl: int = REPLY_TTL) -> None:
        self._connection = connection
        self._redis = connection.client
        self._sorting = Sorting(connection)
        self._reply_ttl = reply_ttl

    @classmethod
    def connect(
        cls, url: str, *, reply_seconds: float = REPLY_SECONDS, reply_ttl: int = REPLY_TTL, wait: Wait | None = None
    ) -> Self:
        """A store behind a URL; nothing is sent yet.

        Args:
            url: `redis://`, `rediss://`, `unix://`, or one of several hosts (`StoreURL`).
            reply_seconds: longest wait for the server's reply.
            reply_ttl: seconds for which the reply to a request id is kept.
            wait: for replicas, before a write counts as acknowledged; None for none.
        """
        return cls(Connection(url, reply_seconds=reply_seconds, wait=wait), reply_ttl=reply_ttl)

    @property
    def tally(self) -> Tally:
        """What went wrong with the server so far."""
        return self._connection.tally

    async def close(self) -> None:
        """Close the connections."""
        await self._sorting.close()
        await self._connection.close()

    async def settle(self) -> None:
        """Return once the order of every run has what this process committed."""
        await self._sorting.settle()

    async def ping(self) -> None:
        """Return once the server answers; Unavailable if it does not within two seconds, as a probe needs it."""
        async with self._connection.guarded(_PING_SECONDS):
            await self._redis.ping()

    async def check(self) -> tuple[str, ...]:
        """Return within two seconds with what may go wrong with the server some day, in words.

        Raises:
            Unavailable: the server is away, or cannot hold the store, and what to do about it.
        """
        return await self._connection.check(_PING_SECONDS)

    async def load_run(self, run_id: str) -> RunRecord | None:
        """The run's fields; None for a run never seen."""
        async with self._connection.guarded():
            raw = await self._redis.hgetall(RunKeys(run_id).meta)
        return RunRecord(run_id, _texts(raw)) if raw else None

    async def has_reply(self, run: RunRecord, request_id: str) -> bool:
        """Whether a reply may be stored under this id; only `stored_reply` says whether it still counts."""
        async with self._connection.guarded():
            return bool(await self._redis.exists(RunKeys(run.run_id).reply(request_id)))

    async def stored_reply(
        self, run: RunRecord | None, request_id: str | None, digest: bytes, *, epoch: int | None = None
    ) -> bytes | None:
        """The reply to a request that was committed before; None where it was not, or where a restore undid it.

        Raises:
            Fenced: the epoch is lower than the run's.
            RequestIdReused: the request had another content.
        """
        if run is None:
            return None
        if epoch is not None and epoch < run.epoch:
            raise fenced(epoch, run.epoch)
        if request_id is None:
            return None
        keys = RunKeys(run.run_id)
        names = [keys.meta, keys.reply(request_id)]
        status, *details = await self._connection.stored_reply(names, digest)
        if status == b"request_id_reused":
            raise request_id_reused(request_id)
        return details[0] if status == b"stored" else None

    async def load_validation(self, run_id: str, version: int) -> ValidationRecord | None:
        """A validation gradient, its checksum verified; None where that version was removed."""
        async with self._connection.guarded():
            packed = await self._redis.hget(RunKeys(run_id).validations, str(version))
        return None if packed is None else ValidationRecord.unpack(packed)

    async def load_moments(self, run_id: str) -> Moments | None:
        """Sums of the run's features and alignments; None where no features were sent."""
        async with self._connection.guarded():
            packed = await self._redis.get(RunKeys(run_id).moments)
        return None if packed is None else Moments.unpack(packed)

    async def load_problems(self, run_id: str, ids: Sequence[str] | None = None) -> ProblemColumns:
        """Records of the given problems, in their order; of all problems, in any order, for None.

        All are read in parts, between which other requests are served: of a problem written meanwhile either state
        may come.
        """
        key = RunKeys(run_id).problems
        if ids is not None:
            return ProblemColumns.unpack(ids, await self._connection.fields(key, ids))
        records: dict[bytes, bytes] = {}
        cursor = -1
        while cursor != 0:
            async with self._connection.guarded():
                cursor, part = await self._redis.hscan(key, max(cursor, 0), count=PART)
            records.update(part)  # a scan may show a problem twice
        return ProblemColumns.unpack([i.decode() for i in records], list(records.values()))

    async def load_beliefs(self, run_id: str, ids: Sequence[str]) -> Beliefs:
        """Beliefs about the success rates of the given problems, in their order."""
        return Beliefs.unpack(await self._connection.fields(RunKeys(run_id).beliefs, ids))

    async def commit_scores(self, commit: ScoreCommit) -> bytes:
        """Store the scores of a request; the reply to send, which a repetition gets from its first commit.

        Raises:
            ValidationGoneError: the run was refreshed often, restored or deleted since its validation gradient was read.
            Fenced, RequestIdReused, StalePolicy, ProjectionMismatch, FeaturesMismatch: nothing was stored.
        """
        keys = RunKeys(commit.run_id)
        names = [keys.problems, keys.unsorted, keys.validations, keys.rounds, keys.moments, keys.beliefs]
        reply = await self._commit("commit_scores", names, commit)
        self._sorting.soon(commit.run_id)
        return reply

    async def commit_refresh(self, commit: RefreshCommit) -> bytes:
        """Store a validation gradient and make it the current one; the reply to send.

        Raises:
            VersionTakenError: another refresh came first.
            Fenced, RequestIdReused, StalePolicy, ProjectionMismatch: nothing was stored.
        """
        keys = RunKeys(commit.run_id)
        return await self._commit("commit_refresh", [keys.validations, keys.rounds], commit)

    async def commit_selection(self, commit: SelectionCommit) -> bytes:
        """Store which problems were picked; the reply to send.

        Raises:
            NotFound, Fenced, RequestIdReused, StalePolicy: nothing was stored.
        """
        keys = RunKeys(commit.run_id)
        return await self._commit("commit_selection", [keys.problems, keys.rounds], commit)

    async def _commit(self, script: str, names: Sequence[str], commit: Commit) -> bytes:
        keys = RunKeys(commit.run_id)
        request = {
            **commit.header(),
            "now": time.time(),
            "incarnation": uuid.uuid4().hex,
            "round": json.dumps(dataclasses.asdict(commit.record)),
            "recent_share": RECENT_SHARE,
            "keep_rounds": KEEP_ROUNDS,
            "keep_validations": KEEP_VALIDATIONS,
            "reply_ttl": self._reply_ttl,
        }
        # First, and idempotent: a crash behind it leaves a name without fields, which list_runs leaves out.
        await self._list(commit.run_id)
        names = [keys.meta, keys.reply(commit.request_id), *names]
        status, *details = await self._connection.commit(script, names, request, commit.arguments())
        if status == b"ok":
            if details[0] == b"1":
                await self._list(commit.run_id)  # a deletion of the run's namesake may have come between
            return commit.reply
        if status == b"stored":
            reply: bytes = details[0]
            return reply
        raise commit_refusal(status.decode(), [detail.decode() for detail in details], commit)

    async def _list(self, run_id: str) -> None:
        async with self._connection.guarded():
            await self._redis.sadd(RUNS, run_id)

    async def list_runs(self) -> list[RunState]:
        """All runs, the one changed last first."""
        async with self._connection.guarded():
            names = sorted(name.decode() for name in await self._redis.smembers(RUNS))
        states = await self.run_states(names)
        return sorted((s for s in states if s), key=lambda state: -state.updated_at)

    async def run_state(self, run_id: str) -> RunState:
        """One run; NotFound for one never seen."""
        (state,) = await self.run_states([run_id])
        if state is None:
            raise run_not_found(run_id)
        return state

    async def changed_since(self, oldest: float, most: int) -> list[str]:
        """Names of the `most` runs that changed last, none of them before `oldest` (Unix time); the last one first."""
        async with self._connection.guarded():
            names = sorted(name.decode() for name in await self._redis.smembers(RUNS))
        times: list[float] = []
        for start in range(0, len(names), _NAMES):
            async with self._connection.guarded(), self._redis.pipeline(transaction=False) as pipe:
                for run_id in names[start : start + _NAMES]:
                    pipe.hget(RunKeys(run_id).meta, "updated_at")
                times += [float(text or 0) for text in await pipe.execute()]
        recent = [(at, name) for at, name in zip(times, names, strict=True) if at >= oldest]
        return [name for _, name in heapq.nlargest(most, recent)]

    async def run_states(self, run_ids: Sequence[str]) -> list[RunState | None]:
        """Each of the runs; None for one never seen."""
        async with self._connection.guarded(), self._redis.pipeline(transaction=False) as pipe:
            for run_id in run_ids:
                pipe.hgetall(RunKeys(run_id).meta)
            values = await pipe.execute()
        return [
            RunRecord(run_id, _texts(raw)).state() if raw else None for run_id, raw in zip(run_ids, values, strict=True)
        ]

    async def page_problems(self, run_id: str, cursor: str | None, limit: int) -> ProblemPage:
        """Problems by priority, best first and ties by id; from behind the cursor, or from the first for None.

        A problem whose priority stays is on exactly one page, whatever is written meanwhile.

        Raises:
            NotFound: no such run.
            InvalidValue: the cursor is not the `next` of a page.
        """
        await self._sorting.now(run_id)
        keys = RunKeys(run_id)
        names = [keys.meta, keys.priorities, keys.problems]
        arguments = [limit, *(decode_cursor(cursor) if cursor else ())]
        status, *details = await self._connection.run("page", names, arguments, repeatable=True)
        if status == b"run_not_found":
            raise run_not_found(run_id)
        more, *flat = details
        rows = [problem_state(i.decode(), record) for i, record in zip(flat[::3], flat[2::3], strict=True)]
        return ProblemPage(problems=rows, next=encode_cursor(flat[-2], flat[-3]) if more == b"more" and flat else None)

    async def outline(self, run_id: str, ends: int, sample: int) -> RankingOutline:
        """The ends of the ranking and an even sample of it, whatever its length; NotFound for a run never seen."""
        await self.run_state(run_id)
        await self._sorting.now(run_id)
        return await outline(self._connection, run_id, ends, sample)

    async def problem(self, run_id: str, problem_id: str) -> ProblemState:
        """One problem with its history; NotFound for one never scored or picked."""
        keys = RunKeys(run_id)
        async with self._connection.guarded(), self._redis.pipeline(transaction=False) as pipe:
            pipe.hget(keys.problems, problem_id)
            pipe.hget(keys.beliefs, problem_id)
            record, packed = await pipe.execute()
        if record is None:
            await self.run_state(run_id)
            raise NotFound(
                f"run {run_id!r} knows no problem {shown(problem_id)}; it knows those that were scored or picked. Check "
                "the id's spelling, and quote it in the URL.",
                param="problem_id",
            )
        return problem_state(problem_id, record, history=True, belief=parameters(packed))

    async def rounds(self, run_id: str, after: int, limit: int) -> list[RoundRecord]:
        """Committed requests with a number above `after`, oldest first; the run keeps about its last 10,000."""
        await self.run_state(run_id)
        async with self._connection.guarded():
            entries = await self._redis.xrange(RunKeys(run_id).rounds, min=f"{after + 1}-0", count=limit)
        return [_round(entry, fields) for entry, fields in entries]

    async def recent_rounds(self, run_ids: Sequence[str], count: int) -> list[list[RoundRecord]]:
        """The last `count` rounds of each run, oldest first; none for a run never seen."""
        async with self._connection.guarded(), self._redis.pipeline(transaction=False) as pipe:
            for run_id in run_ids:
                pipe.xrevrange(RunKeys(run_id).rounds, count=count)
            found = await pipe.execute()
        return [[_round(entry, fields) for entry, fields in reversed(entries)] for entries in found]

    async def snapshot(self, run_id: str, name: str, epoch: int | None = None) -> None:
        """Copy the whole state of a run under a name, replacing an earlier copy of that name."""
        await self._copy("save", run_id, name, epoch)

    async def restore(self, run_id: str, name: str, epoch: int | None = None) -> None:
        """Put a run back to a snapshot: its scores, priorities, policy version, validation gradient and rounds.

        The epoch does not go back. Replies to requests from after the snapshot are forgotten, since their effect is:
        a resumed trainer that sends one again, under the same id, has it applied again. Older replies stand.
        """
        await self._copy("restore", run_id, name, epoch)

    async def _copy(self, action: str, run_id: str, name: str, epoch: int | None) -> None:
        ttl = self._reply_ttl
        await copy_run(self._connection, action, run_id, name, epoch, keep_rounds=KEEP_ROUNDS, reply_ttl=ttl)

    async def delete_run(self, run_id: str, epoch: int | None = None) -> None:
        """Forget a run with its snapshots; NotFound for one never seen."""
        await delete_run(self._connection, run_id, epoch)


def _round(entry: bytes, fields: dict[bytes, bytes]) -> RoundRecord:
    return RoundRecord.from_map({**json.loads(fields[b"round"]), "round": int(entry.split(b"-")[0])})


def _texts(raw: dict[bytes, bytes]) -> dict[str, str]:
    return {key.decode(): value.decode() for key, value in raw.items()}

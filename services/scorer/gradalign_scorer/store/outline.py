"""A ranking at a glance: a few reads, whatever its length."""

from __future__ import annotations

from gradalign import ProblemState, RankingOutline
from gradalign_scorer.store.connection import Connection
from gradalign_scorer.store.keys import RunKeys
from gradalign_scorer.store.records.problems import problem_state

__all__ = ["outline"]


async def outline(connection: Connection, run_id: str, ends: int, sample: int) -> RankingOutline:
    """The first and last `ends` problems, and `sample` evenly spaced ones.

    Of a ranking that is written meanwhile, each problem is shown as it stands when it is read.
    """
    keys = RunKeys(run_id)
    async with connection.guarded():
        count = int(await connection.client.zcard(keys.priorities))
    if count == 0:
        return RankingOutline(problems=0, best=[], worst=[], sample=[])
    async with connection.guarded(), connection.client.pipeline(transaction=False) as pipe:
        pipe.zrange(keys.priorities, 0, ends - 1) if ends else pipe.zrange(keys.priorities, 1, 0)
        pipe.zrange(keys.priorities, -ends, -1) if ends else pipe.zrange(keys.priorities, 1, 0)
        for place in _places(count, sample):
            pipe.zrange(keys.priorities, place, place)
        best, worst, *singles = await pipe.execute()
    chosen = list(dict.fromkeys(found[0] for found in singles if found))
    ids = [*best, *reversed(worst), *chosen]
    records: list[bytes | None] = []
    if ids:
        async with connection.guarded():
            records = await connection.client.hmget(keys.problems, ids)
    rows: list[ProblemState | None] = [
        problem_state(i.decode(), record) if record else None for i, record in zip(ids, records, strict=True)
    ]
    first, last = len(best), len(best) + len(worst)
    parts = (rows[:first], rows[first:last], rows[last:])
    best_rows, worst_rows, sample_rows = ([row for row in part if row] for part in parts)
    return RankingOutline(problems=count, best=best_rows, worst=worst_rows, sample=sample_rows)


def _places(count: int, sample: int) -> list[int]:
    """`sample` ranks evenly spaced over `count`, both ends included; all of them where there are no more."""
    if count <= sample:
        return list(range(count))
    return [round(i * (count - 1) / max(sample - 1, 1)) for i in range(sample)]

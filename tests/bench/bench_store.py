"""What the store costs: bytes a problem, a commit into a small and into a large run, and reading a large run whole.

    python tests/bench/bench_store.py [--problems N] [--passes N]

A real embedded Valkey in a temporary folder, its log on disk as in production. Commits are timed from the caller's side,
each once the one before has been put in order, as between rounds; `then sorted` is how long that takes, behind the reply.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from gradalign import Projection, RoundRecord
from gradalign_scorer.store import EmbeddedServer, RunStore, ScoreCommit

PROJECTION = Projection(dim=8192, seed=0, parameters="ab" * 32)
ROUND = RoundRecord(round=0, kind="score", at=0.0, policy_version=0, validation_version=None, problems=1, selected=0)
PART, COMMIT, REPEATS = 4000, 2000, 15


def scores(run_id: str, ids: list[str], version: int, *, request_id: str | None = None) -> ScoreCommit:
    """A commit of random alignments, best first as the service sends them."""
    random = np.random.default_rng(version)
    values = np.sort(random.normal(size=len(ids)))[::-1]
    ids = random.permutation(ids).tolist()
    return ScoreCommit(
        run_id=run_id,
        policy_version=version,
        epoch=None,
        request_id=request_id,
        digest=b"digest",
        reply=b"reply",
        record=ROUND,
        projection=PROJECTION,
        validation_version=0,
        strategy=None,
        ids=ids,
        alignments=values,
        priorities=values,
        signal=np.ones(len(ids), dtype=bool),
        selected=np.arange(len(ids)) % 3 == 0,
        pass_rates=np.full(len(ids), 0.5),
    )


class Bench:
    """Measures one server.

    Args:
        store: connected to it.
        problems: size of the large run.
    """

    def __init__(self, store: RunStore, problems: int) -> None:
        self.store = store
        self.ids = [f"train/gsm8k-{i:07d}" for i in range(problems)]

    async def info(self, section: str) -> dict[str, Any]:
        """The server's own figures."""
        found: dict[str, Any] = await self.store._redis.info(section)
        return found

    async def fill(self, run_id: str, ids: list[str], version: int) -> None:
        """Score all of them once."""
        for start in range(0, len(ids), PART):
            await self.store.commit_scores(scores(run_id, ids[start : start + PART], version))

    async def bytes_a_problem(self, run_id: str, ids: list[str], passes: int) -> None:
        """Memory of the server over problems, after the first scores and after the last."""
        empty = (await self.info("memory"))["used_memory"]
        for done in range(passes):
            await self.fill(run_id, ids, done)
            await self.store.settle()
            if done in (0, passes - 1):
                memory = await self.info("memory")
                used, resident = memory["used_memory"] - empty, memory["used_memory_rss"]
                print(
                    f"  {len(ids):>9,} problems scored {done + 1}x {used / len(ids):8.0f} bytes a problem "
                    f"({resident / 2**20:,.0f} MiB resident in all)"
                )

    async def commits(self, large: str) -> None:
        """2,000 problems into a fresh run, and into the large one: known to it, and new."""
        cases: dict[str, Callable[[int], ScoreCommit]] = {
            "into an empty run": lambda i: scores(f"empty-{i}", self.ids[:COMMIT], 0),
            "into a run of 2,000, known": lambda i: scores("small", self.ids[:COMMIT], i),
            "into the large run, known": lambda i: scores(large, self.ids[i * COMMIT : (i + 1) * COMMIT], 1000 + i),
            "into the large run, new": lambda i: scores(large, [f"new-{i}-{j}" for j in range(COMMIT)], 1000 + i),
        }
        seconds: dict[str, list[float]] = {name: [] for name in cases}
        sorting: dict[str, list[float]] = {name: [] for name in cases}
        for i in range(REPEATS):
            for name, make in cases.items():
                commit = make(i)
                seconds[name].append(await timed(lambda c=commit: self.store.commit_scores(c)))  # type: ignore[misc]
                sorting[name].append(await timed(self.store.settle))
        base = statistics.median(seconds["into an empty run"])
        print(f"  a commit of {COMMIT:,} problems, median of {REPEATS}:")
        for name, values in seconds.items():
            middle = statistics.median(values)
            print(
                f"    {name:<28}{1e3 * middle:8.1f} ms {middle / base:6.2f}x   then sorted in "
                f"{1e3 * statistics.median(sorting[name]):.1f} ms"
            )

    async def reading(self, run_id: str) -> None:
        """Everything of the run, a page from its middle, a snapshot and back."""
        page = await self.store.page_problems(run_id, None, 1000)
        steps: dict[str, Callable[[], Awaitable[Any]]] = {
            "load_problems, all": lambda: self.store.load_problems(run_id),
            "load_problems, 2,000 ids": lambda: self.store.load_problems(run_id, self.ids[:COMMIT]),
            "page_problems, 100 behind 1,000": lambda: self.store.page_problems(run_id, page.next, 100),
            "snapshot": lambda: self.store.snapshot(run_id, "bench"),
            "restore": lambda: self.store.restore(run_id, "bench"),
            "delete_run": lambda: self.store.delete_run(run_id),
        }
        for name, act in steps.items():
            print(f"  {name:<34}{1e3 * await timed(act):10.1f} ms")


async def timed(act: Callable[[], Awaitable[Any]]) -> float:
    """Seconds until it is done."""
    start = time.perf_counter()
    await act()
    return time.perf_counter() - start


async def measure(url: str, problems: int, passes: int) -> None:
    """All of it on one server."""
    store = RunStore.connect(url, reply_seconds=60)
    try:
        bench = Bench(store, problems)
        await bench.bytes_a_problem("history", bench.ids[: max(problems // 10, PART)], 7)
        await store.delete_run("history")
        await bench.bytes_a_problem("large", bench.ids, passes)
        await bench.commits("large")
        await bench.reading("large")
    finally:
        await store.close()


def main() -> None:
    """Parse the flags and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=1_000_000, help="size of the large run")
    parser.add_argument("--passes", type=int, default=2, help="how often the large run is scored")
    args = parser.parse_args()
    with EmbeddedServer(None) as server:
        asyncio.run(measure(server.url, args.problems, args.passes))


if __name__ == "__main__":
    main()

"""What trainers take of one scorer and its store, by their number: rounds at a steady pace, as training jobs have them.

    python tests/bench/bench_sizing.py [--trainers 1 10 100] [--every SECONDS] [--rounds N] [--pool N] [--by ...]

A round is a `/refresh_validation` of 32 problems, a `/select` and a `/score` of 256 problems: sketches of 8,192 float16, or
products of 8 rollouts. Every trainer has a run of its own, which knows `--pool` problems from the start, and begins at
a random moment of the first round. Shown are the requests and bytes a second, the time of each request as its trainer sees
it, requests that had to be sent again, the scorer's and the store's share of a core, and the store's memory a trainer.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import redis
from bench_scorer import projection_of

from gradalign import Client
from gradalign.errors import UnavailableError

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests/support"))

from scorers import ScorerProcess  # noqa: E402

from gradalign_scorer.store import EmbeddedServer  # noqa: E402

PROBLEMS, VALIDATION, ROLLOUTS, DIM = 256, 32, 8, 8192


class Shared:
    """What all trainers send."""

    def __init__(self, by: str, pool: int) -> None:
        rng = np.random.default_rng(0)
        self.by, self.pool = by, [f"problem-{i:06d}" for i in range(pool)]
        rows = rng.standard_normal((PROBLEMS, DIM), dtype=np.float32).astype(np.float16)
        products = rng.standard_normal((PROBLEMS, ROLLOUTS))
        self.gradients = {"sketches": rows, "projection": projection_of(DIM)}
        self.bytes = rows.nbytes + rows[:VALIDATION].nbytes
        if by == "products":
            products[:VALIDATION] = np.abs(products[:VALIDATION])
            self.gradients = {"products": products}
            self.bytes = 8 * (products.size + products[:VALIDATION].size)

    def refresh(self, client: Client, version: int) -> int:
        """A new validation gradient; its version."""
        ids = [f"trusted-{i}" for i in range(VALIDATION)]
        more = dict(self.gradients)
        if self.by == "products":
            rows = self.gradients["products"][:VALIDATION]
            more = {"products": rows, "lengths": float(rows.sum())}
        else:
            more["sketches"] = self.gradients["sketches"][:VALIDATION]
        return client.refresh_validation(ids, policy_version=version, **more).validation_version

    def score(self, client: Client, ids: list[str], version: int, validation: int) -> None:
        """A batch."""
        more = dict(self.gradients)
        if self.by == "products":
            more["products_version"] = validation
        client.score(ids, policy_version=version, select=64, **more)


class Trainer(threading.Thread):
    """One run at its pace."""

    def __init__(self, url: str, run: str, shared: Shared, options: argparse.Namespace) -> None:
        super().__init__(daemon=True)
        self.client = Client(url, run_id=run, retries=0, timeout=60)
        self.shared, self.options, self.rng = shared, options, random.Random(run)
        self.seconds: dict[str, list[float]] = {"refresh": [], "select": [], "score": []}
        self.again = 0
        self.begin = threading.Event()
        self.error: BaseException | None = None

    def prepare(self) -> None:
        """Let the run know its pool."""
        version = self.shared.refresh(self.client, 0)
        for start in range(0, len(self.shared.pool), PROBLEMS):
            ids = self.shared.pool[start : start + PROBLEMS]
            self.shared.score(self.client, ids, 0, version)

    def run(self) -> None:
        """All rounds."""
        try:
            self.begin.wait()
            time.sleep(self.rng.random() * self.options.every)
            for number in range(1, self.options.rounds + 1):
                due = time.monotonic() + self.options.every
                version = self._timed("refresh", self.shared.refresh, self.client, number)
                self._timed("select", self.client.select, 64, policy_version=number, seed=number)
                ids = self.rng.sample(self.shared.pool, PROBLEMS)
                self._timed("score", self.shared.score, self.client, ids, number, version)
                time.sleep(max(0.0, due - time.monotonic()))
        except BaseException as error:
            self.error = error

    def _timed(self, what: str, act: Callable[..., Any], *given: object, **named: object) -> Any:
        began = time.perf_counter()
        while True:
            try:
                found = act(*given, **named)
            except UnavailableError:
                self.again += 1
                time.sleep(0.1)
            else:
                self.seconds[what].append(time.perf_counter() - began)
                return found


def measure(by: str, number: int, options: argparse.Namespace) -> None:
    """Print a row."""
    shared = Shared(by, options.pool)
    with EmbeddedServer(None) as server:
        scorer = ScorerProcess(server.url)
        try:
            trainers = [Trainer(scorer.url, f"run-{i}", shared, options) for i in range(number)]
            empty = _memory(server)
            for each in trainers:
                each.prepare()
                each.start()
            processes = {"scorer": psutil.Process(scorer.process.pid), "store": psutil.Process(server.pid)}
            before = {name: sum(process.cpu_times()[:2]) for name, process in processes.items()}
            began = time.monotonic()
            for each in trainers:
                each.begin.set()
            for each in trainers:
                each.join()
                if each.error is not None:
                    raise each.error
            wall = time.monotonic() - began
            took = {name: sum(process.cpu_times()[:2]) - before[name] for name, process in processes.items()}
            memory = (_memory(server) - empty) / number
        finally:
            scorer.end()
    seconds = {name: [s for each in trainers for s in each.seconds[name]] for name in trainers[0].seconds}
    count = sum(map(len, seconds.values()))
    times = [
        f"{1000 * statistics.median(each):.0f} / {1000 * float(np.quantile(each, 0.99)):.0f}"
        for each in seconds.values()
    ]
    cells = [
        by, str(number), f"{count / wall:.1f}", f"{shared.bytes * len(seconds['score']) / wall / 1e6:.2f}", *times,
        str(sum(each.again for each in trainers)), *(f"{100 * value / wall:.1f}%" for value in took.values()),
        f"{memory / 1e6:.1f}",
    ]  # fmt: skip
    print(f"| {' | '.join(cells)} |", flush=True)


def _memory(server: EmbeddedServer) -> int:
    with redis.Redis.from_url(server.url) as plain:
        return int(plain.info("memory")["used_memory"])


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainers", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--every", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--pool", type=int, default=4096)
    parser.add_argument("--by", nargs="+", default=["products", "sketches"], choices=["products", "sketches"])
    options = parser.parse_args()
    print(
        "| by | trainers | requests a second | MB a second | refresh, ms (p50 / p99) | select | score | sent again "
        "| scorer, of a core | store | store, MB a trainer |\n|" + "---|" * 11
    )
    for by in options.by:
        for number in options.trainers:
            measure(by, number, options)


if __name__ == "__main__":
    main()

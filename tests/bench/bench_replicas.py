"""Useful requests a second by the number of scorers, over a cluster of three primaries and over one server.

    python tests/bench/bench_replicas.py [--scorers 1 2 4] [--trainers N] [--problems N] [--dim N] [--requests N]

Trainers are processes of their own, each knows all scorers and begins with another one. `one run`: all of them send to the
same run, so each commit waits for the others in one script of one primary. `runs of their own`: a run each. Every number is
of a fresh set of scorers; what was applied is counted in the store and must be what was acknowledged.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from bench_scorer import Load, percentiles

from gradalign import Client

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests/support"))

from clusters import cluster  # noqa: E402
from scorers import ScorerProcess  # noqa: E402

from gradalign_scorer.store import EmbeddedServer  # noqa: E402

TRAINER = """
import sys
from bench_scorer import Load, timed
from gradalign import Client
urls, run, problems, dim, count = sys.argv[1].split(","), sys.argv[2], *map(int, sys.argv[3:])
load = Load(problems, dim)
with Client(urls, run_id=run, retries=60) as client:
    load.score(client)
    print("ready", flush=True)
    sys.stdin.readline()
    print(*timed(lambda: load.score(client), count))
"""


def goodput(urls: Sequence[str], runs: Sequence[str], options: argparse.Namespace) -> tuple[float, list[float]]:
    """Requests a second, and the seconds of each, of a trainer a run; runs may repeat."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    processes = []
    for number, run in enumerate(runs):
        turn = number % len(urls)
        mine = ",".join([*urls[turn:], *urls[:turn]])
        numbers = map(str, (options.problems, options.dim, options.requests))
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", TRAINER, mine, run, *numbers],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path},
            )
        )  # fmt: skip
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready"
    began = time.perf_counter()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    seconds = [float(word) for process in processes for word in process.communicate()[0].split()]
    return len(seconds) / (time.perf_counter() - began), seconds


def measure(store: str, name: str, scorers: int, own: bool, options: argparse.Namespace) -> None:
    """Print a row."""
    with ExitStack() as stack:
        started = [ScorerProcess(store) for _ in range(scorers)]
        for each in started:
            stack.callback(each.end)
        urls = [each.url for each in started]
        count = options.trainers if own else 1
        runs = [f"{name}-{scorers}-{number % count}".replace(" ", "-") for number in range(options.trainers)]
        load = Load(options.problems, options.dim)
        for run in set(runs):
            with Client(urls[0], run_id=run) as client:
                load.refresh(client)
        rate, seconds = goodput(urls, runs, options)
        applied = 0
        for run in set(runs):
            with Client(urls[0], run_id=run) as client:
                applied += client.run().rounds - 1  # the refresh
                client.delete_run()
    sent = options.trainers * (1 + options.requests)
    assert applied == sent, f"{sent} requests were acknowledged, {applied} applied"
    kind = "runs of their own" if own else "one run"
    print(f"| {name} | {kind} | {scorers} | {rate:.1f} | {percentiles(seconds)} |", flush=True)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scorers", type=int, nargs="+", default=[1, 2, 4])
    for name, default in (("trainers", 16), ("problems", 256), ("dim", 8192), ("requests", 50)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    print("| store | trainers send to | scorers | requests a second | a request |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, cluster(Path(folder)) as house, EmbeddedServer(None) as server:
        for store, name in ((server.url, "one server"), (house.url, "cluster")):
            for own in (False, True):
                for scorers in options.scorers:
                    measure(store, name, scorers, own, options)


if __name__ == "__main__":
    main()

"""Useful requests a second by the number of scorers, over a cluster of three primaries and over one server.

    python tests/bench/bench_replicas.py [--scorers 1 2 4] [--trainers N] [--problems N] [--dim N] [--requests N]

Trainers are processes of their own, each knows all scorers and begins with another one. `one run`: all of them send to the
same run, so each commit waits for the others in one script of one primary. `runs of their own`: a run each. Every number is
of a fresh set of scorers; what was applied is counted in the store and must be what was acknowledged.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from bench_scorer import at_once, percentiles

from gradalign import Client

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests/support"))

from clusters import cluster  # noqa: E402
from scorers import ScorerProcess  # noqa: E402

from gradalign_scorer.store import EmbeddedServer  # noqa: E402


def measure(store: str, name: str, scorers: int, own: bool, options: argparse.Namespace) -> None:
    """Print a row."""
    with ExitStack() as stack:
        started = [ScorerProcess(store) for _ in range(scorers)]
        for each in started:
            stack.callback(each.end)
        urls = [each.url for each in started]
        count = options.trainers if own else 1
        runs = [f"{name}-{scorers}-{number % count}".replace(" ", "-") for number in range(options.trainers)]
        turns = [number % scorers for number in range(options.trainers)]
        places = [([*urls[turn:], *urls[:turn]], run) for turn, run in zip(turns, runs, strict=True)]
        seconds, wall = at_once(places, options.problems, options.dim, options.requests)
        applied = 0
        for run in set(runs):
            with Client(urls[0], run_id=run) as client:
                applied += client.run().rounds - 1  # the refresh
                client.delete_run()
    sent = options.trainers * (1 + options.requests)  # the first one is not timed
    assert applied == sent, f"{sent} requests were acknowledged, {applied} applied"
    kind = "runs of their own" if own else "one run"
    print(f"| {name} | {kind} | {scorers} | {len(seconds) / wall:.1f} | {percentiles(seconds)} |", flush=True)


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

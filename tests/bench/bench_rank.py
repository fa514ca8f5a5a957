"""What sharing a ranking costs, and what a large pool takes: `gradalign rank` by one process, and by actors of Ray.

    python tests/bench/bench_rank.py [--problems N] [--responses N] [--hidden N] [--dim N] [--exact] [--repeats N] [--ways W]

Needs the extra `ray`. Each way ranks the same synthetic pool with a tiny untrained model, one thread a process, one scorer
for all; `plain` is one process, `ray-1` the same with one actor on a Ray of its own, `ray-2` with two. A figure is the
median of the repeats, which take turns. Busy are the seconds of processor time of all processes of the ranking, Ray's
own too; peak is the largest resident memory that the command's own process had. Every way must write the same files.

    python tests/bench/bench_rank.py --read MB

instead reads a file of so many megabytes, its records in random order, into groups in order, and tells by how much the
memory of this process grew.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from responsefiles import responses, save_model

from gradalign_trainer.curriculum.localscorer import local_scorer
from gradalign_trainer.rank.distributed.pool import Pool
from gradalign_trainer.reporting.progress import no_progress

WAYS = {"plain": (), "ray-1": ("--ray", "--workers", "1"), "ray-2": ("--ray", "--workers", "2")}
LOOK_EVERY = 0.2  # seconds


def write_pool(path: Path, problems: int, samples: int) -> None:
    """Problems in pieces, so that this process stays small."""
    with path.open("w") as file:
        for first in range(0, problems, 1000):
            for record in responses(min(1000, problems - first), samples, seed=first):
                file.write(json.dumps({**record, "group_id": record["group_id"] + first}) + "\n")


class Watched:
    """A command with all processes below it, until it ends."""

    def __init__(self, command: list[str]) -> None:
        self.busy: dict[int, float] = {}
        self.names: dict[int, str] = {}
        self.peak = 0
        begun = time.perf_counter()
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        ) as process:
            root = psutil.Process(process.pid)
            while process.poll() is None:
                self.look(root)
                time.sleep(LOOK_EVERY)
            self.seconds = time.perf_counter() - begun
            said = process.stdout.read() if process.stdout else ""
        if process.returncode:
            raise SystemExit(said[-3000:])
        found = re.search(r"(\d+) gradients taken now", said)
        self.measured = int(found[1]) if found else 0

    def look(self, root: psutil.Process) -> None:
        for process in [root, *root.children(recursive=True)]:
            try:
                times = process.cpu_times()
                self.names[process.pid] = name_of(process, root)  # an actor is called so once it is one
                self.busy[process.pid] = times.user + times.system
                if process == root:
                    self.peak = max(self.peak, process.memory_info().rss)
            except psutil.Error:
                continue


def name_of(process: psutil.Process, root: psutil.Process) -> str:
    """The command's own process, the workers, or Ray's own processes."""
    if process == root:
        return "command"
    return "workers" if "ray::Replica" in " ".join(process.cmdline()) else "Ray"


def shares(run: Watched) -> str:
    """Seconds of processor time by kind of process."""
    found: dict[str, float] = {}
    for pid, seconds in run.busy.items():
        found[run.names[pid]] = found.get(run.names[pid], 0.0) + seconds
    return ", ".join(f"{name} {seconds:.1f}" for name, seconds in found.items())


def read(megabytes: int) -> None:
    """A file of records of 2 kB, eight a problem, in random order."""
    count = megabytes * 500
    with tempfile.TemporaryDirectory(prefix="bench-rank-") as name:
        file = Path(name) / "train.jsonl"
        with file.open("w") as lines:
            for number in random.Random(0).sample(range(count), count):
                record = {"group_id": number // 8, "sample_id": number % 8, "prompt": "Q", "response": "x" * 1900}
                lines.write(json.dumps({**record, "reward": number % 3 / 2}) + "\n")
        before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        with closing(Pool(Path(name) / "pool.sqlite", file, None, no_progress)) as pool:
            made = time.perf_counter()
            groups = sum(len(pool.groups(start, start + 16)) for start in range(0, len(pool), 16))
        ended = time.perf_counter()
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3
        print(
            f"{file.stat().st_size / 1e6:.0f} MB, {count} records, {groups} groups: put in order in {made - begun:.0f} s, "
            f"given out in {ended - made:.0f} s, {grown:.0f} MB of memory"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=2000)
    parser.add_argument("--responses", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--hidden", type=int, default=32, help="width of the model of two layers")
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["plain", "ray-1"])
    parser.add_argument("--read", type=int, metavar="MB")
    args = parser.parse_args()
    if args.read is not None:
        read(args.read)
        return
    found: dict[str, list[Watched]] = {way: [] for way in args.ways}
    files = set()
    with tempfile.TemporaryDirectory(prefix="bench-rank-") as name, local_scorer() as url:
        folder = Path(name)
        save_model(folder / "model", hidden=args.hidden)
        write_pool(folder / "train.jsonl", args.problems, args.responses)
        write_pool(folder / "val.jsonl", 32, args.responses)
        print(
            f"{args.problems} problems, {(folder / 'train.jsonl').stat().st_size / 1e6:.0f} MB of responses", flush=True
        )
        for _ in range(args.repeats):
            for way in args.ways:
                out = folder / way / "similarity.jsonl"
                given = ["--model", folder / "model", "--train", folder / "train.jsonl", "--out", out, "--url", url]
                given += ["--validation", folder / "val.jsonl", "--dim", args.dim, "--threads", 1, "--device", "cpu"]
                flags = [*WAYS[way], *(["--exact"] if args.exact else [])]
                found[way].append(Watched([sys.executable, "-m", "gradalign", "rank", *map(str, given), *flags]))
                files.add(out.read_bytes() + out.with_name("accuracy_by_problem.jsonl").read_bytes())
                last = found[way][-1]
                print(f"  {way}: {last.seconds:.1f} s, busy {shares(last)} s", flush=True)
    for way, runs in found.items():
        seconds = statistics.median(run.seconds for run in runs)
        busy = statistics.median(sum(run.busy.values()) for run in runs)
        peak = max(run.peak for run in runs) / 1e6
        print(f"{way:>6}: {seconds:7.1f} s, busy {busy:7.1f} s, peak {peak:6.0f} MB, {runs[0].measured} gradients")
    print("same files" if len(files) == 1 else "THE FILES DIFFER")


if __name__ == "__main__":
    main()

"""What a /score request costs on the way: ratios in one run against named alternatives, over loopback.

    python tests/bench/bench_scorer.py [--mib N] [--dim N] [--repeats N] [--only throughput dtypes ...]

throughput  a raw socket, the naive path (httpx with bytes; `await request.body()`, unpackb, a matrix-vector product), a JSON
            client and ours, TCP and Unix-domain sockets, for one request of N MiB of float16; and the client's CPU time
            against a bare http.client send of the same bytes
dtypes      requests of 512 and of 4,096 problems as float32, float16 and int8, in turns: bytes, p50, best, and the median of
            the ratios to float16 of the same turn
latency     a request of 512 problems alone and from 8 trainers at once, and /livez meanwhile
overload    useful requests a second at 4 times as many trainers as the scorer admits, against the best without overload
memory      resident memory of the scorer after 200 and after 2,000 requests of 16 MiB

The scorer is a process of its own with an embedded Valkey, as `gradalign serve` starts it. Alternatives take turns within a
repetition, and the best of all repetitions counts.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import msgpack
import numpy as np
import psutil
from peers import MIB, naive_server, raw_sink, send_raw

from gradalign import Client, Projection, SketchMatrix
from gradalign.errors import UnavailableError

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests/support"))

from scorers import ScorerProcess  # noqa: E402


def projection_of(dim: int) -> Projection:
    """Of any model."""
    return Projection(dim=dim, seed=0, parameters="ab" * 32)


class Load:
    """One request's problems and sketches."""

    def __init__(self, problems: int, dim: int) -> None:
        rng = np.random.default_rng(0)
        self.dim, self.ids = dim, [f"problem-{i:05d}" for i in range(problems)]
        self.sketches = rng.standard_normal((problems, dim), dtype=np.float32).astype(np.float16)
        self.projection = projection_of(dim)

    def score(self, client: Client, version: int = 1) -> None:
        """Score all of it."""
        client.score(self.ids, self.sketches, policy_version=version, projection=self.projection, select=16)

    def refresh(self, client: Client) -> None:
        """Make the first rows the validation gradient."""
        client.refresh_validation(self.ids[:32], self.sketches[:32], policy_version=0, projection=self.projection)

    def naive_body(self) -> bytes:
        """As a first version would send it: one msgpack map."""
        return msgpack.packb({"problem_ids": self.ids, "dim": self.dim, "sketches": self.sketches.tobytes()})

    def json_body(self, run_id: str, rows: int) -> dict[str, object]:
        """The wire's JSON, of the first rows."""
        return {
            "run_id": run_id, "policy_version": 1, "projection": self.projection.to_map(), "problem_ids": self.ids[:rows],
            "sketches": self.sketches[:rows].astype(float).tolist(),
        }  # fmt: skip


def best_of(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, tuple[float, float]]:
    """Wall and CPU seconds of this process, the best of each; every repetition runs every contestant once."""
    found = {name: (float("inf"), float("inf")) for name in runs}
    for repetition in range(repeats + 1):
        for name, run in runs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            if repetition:  # the first one warms connections and caches
                now = time.perf_counter() - wall, time.process_time() - cpu
                found[name] = min(found[name][0], now[0]), min(found[name][1], now[1])
    return found


def bench_throughput(options: argparse.Namespace) -> None:
    """Bytes of sketches a second, request by request."""
    problems = options.mib * MIB // (2 * options.dim)
    load, json_rows = Load(problems, options.dim), max(1, problems // 64)
    size, part = load.sketches.nbytes, load.sketches[:json_rows].nbytes
    naive, wire = load.naive_body(), memoryview(load.sketches).cast("B")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ga-")))
        scorer = ScorerProcess(None, "--uds", str(folder / "scorer.sock"))
        stack.callback(scorer.end)
        tcp = stack.enter_context(Client(scorer.url, run_id="tcp"))
        uds = stack.enter_context(Client(f"unix:{folder}/scorer.sock", run_id="uds"))
        load.refresh(tcp)
        load.refresh(uds)
        naive_url = stack.enter_context(naive_server(options.dim))
        plain = stack.enter_context(httpx.Client(timeout=120))
        sink_tcp = stack.enter_context(raw_sink(None))
        sink_uds = stack.enter_context(raw_sink(folder / "raw.sock"))
        runs: dict[str, Callable[[], object]] = {
            "raw socket, TCP": lambda: send_raw(sink_tcp, wire),
            "raw socket, UDS": lambda: send_raw(sink_uds, wire),
            "naive, TCP": lambda: plain.post(f"{naive_url}/score", content=naive).raise_for_status(),
            "ours, TCP": lambda: load.score(tcp),
            "ours, UDS": lambda: load.score(uds),
            "http.client, bytes to the naive server": lambda: bare_send(naive_url, naive),
            f"JSON, 1/{problems // json_rows} of it": lambda: plain.post(
                f"{scorer.url}/score", json=load.json_body("tcp", json_rows)
            ).raise_for_status(),
        }
        found = best_of(runs, options.repeats)
    print(f"\nthroughput, {problems} problems x {options.dim} x float16 = {size / MIB:.0f} MiB a request")
    base = size / found["raw socket, TCP"][0]
    naive_rate = size / found["naive, TCP"][0]
    for name, (wall, cpu) in found.items():
        sent = part if name.startswith("JSON") else size
        rate = sent / wall
        print(
            f"  {name:<40}{rate / 1e6:9.0f} MB/s  {rate / base:6.2f} of raw TCP {rate / naive_rate:7.2f}x naive"
            f"   client CPU {1e3 * cpu:7.1f} ms"
        )
    ratio = found["ours, TCP"][1] / found["http.client, bytes to the naive server"][1]
    print(f"  client's CPU time, ours over a bare http.client send: {ratio:.2f}x")


def bench_dtypes(options: argparse.Namespace) -> None:
    """The same rows in each dtype, made before, and quantised by the client while it sends."""
    scorer = ScorerProcess(None)
    try:
        for problems in (512, 4096):
            load = Load(problems, options.dim)
            floats = load.sketches.astype(np.float32)
            int8 = SketchMatrix.of(floats, "int8")
            forms: dict[str, Callable[[], Any]] = {
                "float16": lambda load=load: load.sketches,
                "float32": lambda floats=floats: floats,
                "int8": lambda int8=int8: int8,
                "float16, made of float32": lambda floats=floats: floats.astype(np.float16),
                "int8, made of float32": lambda floats=floats: SketchMatrix.of(floats, "int8"),
            }
            with ExitStack() as stack:
                runs: dict[str, Callable[[], object]] = {}
                for name, rows in forms.items():
                    client = stack.enter_context(Client(scorer.url, run_id=f"{problems}-{len(runs)}"))
                    load.refresh(client)
                    runs[name] = lambda client=client, rows=rows, load=load: client.score(
                        load.ids, rows(), policy_version=1, projection=load.projection, select=16
                    )
                turns = [{name: timed(run, 1)[0] for name, run in runs.items()} for _ in range(options.repeats + 1)][1:]
            print(f"\n/score of {problems} problems x {options.dim}, {len(turns)} turns")
            for name, rows in forms.items():
                size = SketchMatrix.of(rows()).data.nbytes
                seconds = [turn[name] for turn in turns]
                beside = "float16, made of float32" if "made" in name else "float16"
                ratio = statistics.median(turn[beside] / turn[name] for turn in turns)
                print(
                    f"  {name:<26}{size:>12} bytes   p50 {1e3 * statistics.median(seconds):7.1f} ms   best "
                    f"{1e3 * min(seconds):7.1f} ms   {ratio:5.2f}x as fast as {beside}"
                )
    finally:
        scorer.end()


def bare_send(url: str, body: bytes) -> None:
    """The least that an HTTP client of the standard library can do."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=120)
    connection.request("POST", "/score", body=body)
    json.loads(connection.getresponse().read())
    connection.close()


def percentiles(seconds: list[float]) -> str:
    """p50 and p99 in milliseconds."""
    ordered = sorted(seconds)
    return (
        f"p50 {1e3 * statistics.median(ordered):7.1f} ms  p99 {1e3 * ordered[int(0.99 * (len(ordered) - 1))]:7.1f} ms"
    )


def timed(act: Callable[[], object], count: int) -> list[float]:
    """Seconds of each of `count` calls."""
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - start)
    return seconds


def together(acts: list[Callable[[], object]], count: int) -> list[float]:
    """Seconds of `count` calls of each act, all acts at once."""
    found: list[float] = []
    threads = [threading.Thread(target=lambda act=act: found.extend(timed(act, count))) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


TRAINER = """
import sys
from bench_scorer import Load, timed
from gradalign import Client
urls, run, problems, dim, count = sys.argv[1].split(","), sys.argv[2], *map(int, sys.argv[3:])
load = Load(problems, dim)
with Client(urls, run_id=run, retries=30) as client:
    load.score(client)
    print("ready", flush=True)
    sys.stdin.readline()
    print(*timed(lambda: load.score(client), count))
"""


def trainers(url: str, number: int, problems: int, dim: int, count: int) -> tuple[list[float], float]:
    """Seconds of each request of a number of trainer processes at once, and the wall time of all."""
    return at_once([([url], f"run-{number}-{i}") for i in range(number)], problems, dim, count)


def at_once(
    places: Sequence[tuple[Sequence[str], str]], problems: int, dim: int, count: int
) -> tuple[list[float], float]:
    """Seconds of each request of trainer processes that begin together, and the wall time of all.

    Args:
        places: addresses of scorers and run of each.
        problems: of a request.
        dim: of a sketch.
        count: requests of each.
    """
    load = Load(problems, dim)
    for run, urls in {run: urls for urls, run in places}.items():
        with Client(urls, run_id=run) as client:
            load.refresh(client)
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TRAINER, ",".join(urls), run, str(problems), str(dim), str(count)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path},
        )
        for urls, run in places
    ]  # fmt: skip
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready"
    start = time.perf_counter()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    texts = [process.communicate()[0] for process in processes]
    return [float(word) for text in texts for word in text.split()], time.perf_counter() - start


def bench_latency(options: argparse.Namespace) -> None:
    """A usual round's request, and the probe beside it."""
    print(f"\nlatency of a request of 512 problems x {options.dim}, float16")
    scorer = ScorerProcess(None)
    try:
        with httpx.Client(base_url=scorer.url, timeout=30) as probe:
            idle = timed(lambda: probe.get("/livez").raise_for_status(), 200)
            alone, _ = trainers(scorer.url, 1, 512, options.dim, 100)
            stop, seen = threading.Event(), []

            def watch() -> None:
                while not stop.is_set():
                    seen.extend(timed(lambda: probe.get("/livez").raise_for_status(), 1))
                    time.sleep(0.005)

            watcher = threading.Thread(target=watch)
            watcher.start()
            loaded, _ = trainers(scorer.url, 8, 512, options.dim, 40)
            stop.set()
            watcher.join()
        print(f"  one trainer      {percentiles(alone)}\n  eight at once    {percentiles(loaded)}")
        print(f"  /livez idle      {percentiles(idle)}\n  /livez meanwhile {percentiles(seen)}")
    finally:
        scorer.end()


def bench_overload(options: argparse.Namespace) -> None:
    """Goodput with more trainers than are admitted, who retry."""
    print("\ngoodput, 256 problems a request; the scorer admits 4 requests at once")
    rates = {}
    for number in (1, 2, 4, 16):
        scorer = ScorerProcess(None, MAX_REQUESTS="4", QUEUE_SIZE="4")
        try:
            seconds, wall = trainers(scorer.url, number, 256, options.dim, 1600 // number)
        finally:
            scorer.end()
        rates[number] = len(seconds) / wall
        print(f"  {number:>2} trainers {rates[number]:8.1f} requests a second")
    peak = max(rate for number, rate in rates.items() if number <= 4)
    print(f"  at 4x overload {rates[16] / peak:.2f} of the peak")


def bench_memory(options: argparse.Namespace) -> None:
    """Growth of the scorer over many large requests."""
    load = Load(16 * MIB // (2 * options.dim), options.dim)
    scorer = ScorerProcess(None)
    try:
        process, sizes = psutil.Process(scorer.process.pid), {}
        with Client(scorer.url, run_id="memory") as client:
            load.refresh(client)
            for done in range(1, options.requests + 1):
                try:
                    load.score(client, version=done)
                except UnavailableError as error:
                    raise SystemExit(f"request {done}: {error}") from error
                if done in (options.requests // 10, options.requests):
                    sizes[done] = process.memory_info().rss
        (first, small), (last, large) = sizes.items()
        print(
            f"\nresident memory after {first} requests of 16 MiB {small / MIB:.0f} MiB, after {last} {large / MIB:.0f} MiB: "
            f"{large / small - 1:+.1%}"
        )
    finally:
        scorer.end()


BENCHES = {
    "throughput": bench_throughput, "dtypes": bench_dtypes, "latency": bench_latency, "overload": bench_overload,
    "memory": bench_memory,
}  # fmt: skip


def main() -> None:
    """Run the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=64, help="size of a request in `throughput`")
    parser.add_argument("--dim", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--requests", type=int, default=2000, help="in `memory`")
    parser.add_argument("--only", nargs="+", choices=BENCHES, default=list(BENCHES))
    options = parser.parse_args()
    for name in options.only:
        BENCHES[name](options)


if __name__ == "__main__":
    main()

"""What a /score by products costs beside one by sketches: bytes, and the time from the client's call to the ranking.

    python tests/bench/bench_products.py [--problems N] [--rollouts N] [--dim N] [--repeats N]

Both ask the same scorer, a process of its own with an embedded Valkey, for a ranking of the same problems, in turns: one by
float16 sketches of `dim` numbers, one by a product for each rollout, and one that also asks for a weight for each rollout.
The median and the best of all repetitions are shown, and the median of the ratios within a repetition.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gradalign import Client, Projection, Ranking, ScoreRequest, SketchMatrix
from gradalign.wire.codec import encode_request

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests/support"))

from scorers import ScorerProcess  # noqa: E402


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("problems", 4096), ("rollouts", 8), ("dim", 8192), ("repeats", 15)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    ids = [f"problem-{i:05d}" for i in range(args.problems)]
    sketches = rng.standard_normal((args.problems, args.dim), dtype=np.float32).astype(np.float16)
    products = rng.standard_normal((args.problems, args.rollouts))
    projection = Projection(dim=args.dim, seed=0, parameters="ab" * 32)
    show_bytes(ids, sketches, products, projection)
    scorer = ScorerProcess(None)
    try:
        with Client(scorer.url, run_id="sketches") as sketched, Client(scorer.url, run_id="products") as produced:
            sketched.refresh_validation(ids[:64], sketches[:64], policy_version=0, projection=projection)
            produced.refresh_validation(["v"], products=[[1.0]], lengths=1.0, policy_version=0)
            fields = {"products": products, "products_version": 1, "policy_version": 0}
            ways: dict[str, Callable[[], Ranking]] = {
                "sketches": lambda: sketched.score(ids, sketches, policy_version=0, projection=projection),
                "products": lambda: produced.score(ids, **fields),
                "products, rollout weights": lambda: produced.score(ids, **fields, rollout_weights=True),
            }
            show_times(timed(ways, args.repeats))
    finally:
        scorer.end()


def show_bytes(ids: list[str], sketches: np.ndarray, products: np.ndarray, projection: Projection) -> None:
    """Bytes of a body of either kind."""
    common = {"run_id": "r", "policy_version": 0, "problem_ids": ids}
    requests = {
        "sketches": ScoreRequest(**common, projection=projection, sketches=SketchMatrix.of(sketches)),
        "products": ScoreRequest(**common, products=products.tolist(), products_version=1),
    }
    sizes = {name: sum(memoryview(part).nbytes for part in encode_request(r)) for name, r in requests.items()}
    for name, size in sizes.items():
        print(f"{name:<28} {size:>12,} bytes  1/{sizes['sketches'] / size:.0f}")


def timed(ways: dict[str, Callable[[], Ranking]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each way, which take turns; the first turn does not count."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, act in ways.items():
            began = time.perf_counter()
            act()
            times[name].append(time.perf_counter() - began)
    return {name: values[1:] for name, values in times.items()}


def show_times(times: dict[str, list[float]]) -> None:
    """Medians, bests and ratios."""
    for name, values in times.items():
        ratio = statistics.median(one / other for one, other in zip(times["sketches"], values, strict=True))
        median, best = statistics.median(values), min(values)
        print(f"{name:<28} p50 {median * 1e3:7.1f} ms  best {best * 1e3:7.1f} ms  {ratio:5.2f}x as fast as sketches")


if __name__ == "__main__":
    main()

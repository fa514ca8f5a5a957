"""How close the pass over the sketches comes to memory bandwidth: bytes read a second, over those of a copy.

    python tests/bench/bench_kernel.py [--mib N] [--dim N] [--threads N ...] [--device cpu|cuda]

`products` gives every row's product with the validation gradient and its norm. Beside it: a copy of the same bytes, and the
plain way (`x.float() @ v` and `x.float().norm(dim=1)`). Contestants take turns; the best of all repetitions counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from gradalign import SketchMatrix
from gradalign_scorer.ranking.alignment import SketchRows, products


def best(runs: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, float]:
    """Seconds of the fastest repetition of each."""
    seconds = dict.fromkeys(runs, float("inf"))
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds


def main() -> None:
    """Print a table for every dtype and number of threads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--dim", type=int, default=8192)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    vector = torch.randn(options.dim)
    for threads in options.threads:
        torch.set_num_threads(threads)
        for dtype in ("int8", "float16", "float32"):
            count = (options.mib << 20) // (options.dim * np.dtype(dtype).itemsize)
            rows = np.random.default_rng(0).standard_normal((count, options.dim), dtype=np.float32)
            matrix = SketchMatrix.of(rows, "int8") if dtype == "int8" else SketchMatrix.of(rows.astype(dtype))
            sketches, rows = SketchRows([matrix]), np.frombuffer(matrix.data, dtype).reshape(rows.shape)
            x, spare = (
                torch.from_numpy(rows).to(device),
                torch.empty(rows.shape, dtype=getattr(torch, dtype), device=device),
            )
            there = vector.to(device)
            runs: dict[str, Callable[[], object]] = {
                "copy": lambda x=x, spare=spare: spare.copy_(x),
                "products": lambda sketches=sketches: products(sketches, vector, device),
                "plain": lambda x=x, there=there: (x.float() @ there, x.float().norm(dim=1)),
            }
            found = best(runs, options.repeats, device)
            size = rows.nbytes
            print(f"{count} rows x {options.dim} {dtype}, {threads} threads, {device}")
            for name, seconds in found.items():
                print(
                    f"  {name:<10}{size / seconds / 1e9:7.2f} GB/s read   {found['copy'] / seconds:5.2f} of the copy's"
                    f"   {found['plain'] / seconds:5.2f}x plain"
                )


if __name__ == "__main__":
    main()

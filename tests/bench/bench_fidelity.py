"""How true sketched alignments are, and whether the scorer's `reliability` foretells it.

    python tests/bench/bench_fidelity.py [--pool N] [--seeds N] [--updates 0 10] [--wire]

GRPO gradients of the demo's base model, as trained and after updates of GRPO, in all regimes; k from 1,024 to 65,536.
Predicted is `reliability` of the sketched alignments alone; found is their correlation with the exact cosines. Each
figure is a mean over hash seeds.

--wire instead compares what sketches travel as, at k of 4,096 and 8,192: float32, float16 and int8, candidates and
validation gradient alike, with the exact cosines and with the float32 sketches of the same seed. Beside them stand float32
sketches of two seeds.
"""

from __future__ import annotations

import argparse
import statistics

import numpy as np
import torch
from grpo_gradients import Stage, cosines, overlap, pearson, spearman

from gradalign import SketchMatrix
from gradalign.sketch import Sketcher
from gradalign_scorer.ranking.reliability import reliability

REGIMES = ("clean", "inverted", "imbalance")
DIMS = [1 << n for n in range(10, 17)]


def measure(stage: Stage, exact: torch.Tensor, dim: int, seed: int) -> tuple[float, float, float, float]:
    """Predicted and found Pearson correlation, Spearman's, and the overlap of the top eighth."""
    rows, target = stage.sketches(Sketcher(stage.model, dim=dim, seed=seed))
    signal = torch.isfinite(exact)
    found, true = cosines(rows, target)[signal], exact[signal]
    predicted = reliability(found.numpy(), dim)
    return (
        predicted.value if predicted else float("nan"),
        pearson(found, true),
        spearman(found, true),
        overlap(found, true),
    )


def carried(rows: torch.Tensor, dtype: str) -> tuple[torch.Tensor, int]:
    """What the wire carries of sketches [n, k], and in how many bytes."""
    matrix = SketchMatrix.of(rows.half() if dtype == "float16" else rows, "int8" if dtype == "int8" else None)
    return torch.from_numpy(matrix.numpy().astype(np.float64)), matrix.data.nbytes + 9 * len(matrix.scales or ())


def agreement(one: torch.Tensor, other: torch.Tensor) -> list[float]:
    """Pearson, Spearman and the overlap of the top eighth."""
    return [pearson(one, other), spearman(one, other), overlap(one, other)]


def compare_dtypes(stage: Stage, exact: torch.Tensor, dim: int, seeds: int) -> None:
    """Print a line for each dtype, and one for two seeds of the projection."""
    signal = torch.isfinite(exact)
    found: dict[str, list[list[float]]] = {}
    first: list[torch.Tensor] = []
    for seed in range(seeds):
        rows, target = stage.sketches(Sketcher(stage.model, dim=dim, seed=seed))
        full = cosines(rows, target)[signal]
        first.append(full)
        for dtype in ("float32", "float16", "int8"):
            (values, size), (aim, _) = carried(rows, dtype), carried(target[None], dtype)
            these = cosines(values, aim[0])[signal]
            line = [
                *agreement(these, exact[signal]),
                *agreement(these, full),
                float((these - full).std()),
                size / len(rows),
            ]
            found.setdefault(dtype, []).append(line)
    for dtype, lines in found.items():
        mean = [statistics.fmean(column) for column in zip(*lines, strict=True)]
        shown = " ".join(f"{value:9.5f}" for value in mean[:-1])
        print(f"{dim:>6}  {dtype:<10}{shown} {mean[-1]:10.0f}", flush=True)
    pairs = [(one, other) for i, one in enumerate(first) for other in first[i + 1 :]]
    lines = [[*agreement(one, other), float((one - other).std())] for one, other in pairs]
    mean = [statistics.fmean(column) for column in zip(*lines, strict=True)]
    print(f"{dim:>6}  two seeds " + " " * 30 + " ".join(f"{value:9.5f}" for value in mean), flush=True)


def main() -> None:
    """Print a table a regime and stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pool", type=int, default=512)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--updates", type=int, nargs="+", default=[0, 10])
    parser.add_argument("--wire", action="store_true")
    options = parser.parse_args()
    worst = 0.0
    for regime in REGIMES:
        for updates in options.updates:
            stage = Stage(regime, updates=updates, pool=options.pool)
            exact = stage.exact()
            known = exact[torch.isfinite(exact)]
            print(
                f"\n{regime}, {updates} updates: {len(known)} of {len(exact)} problems with a signal, sd {known.std():.3f}"
            )
            if options.wire:
                print(
                    "     k  as         with the exact cosines        with the float32 sketch       sd diff  bytes a row"
                )
                print("                    Pearson  Spearman       top   Pearson  Spearman       top")
                for dim in (4096, 8192):
                    compare_dtypes(stage, exact, dim, max(2, options.seeds))
                continue
            print("       k   predicted   Pearson  Spearman  top eighth")
            for dim in DIMS:
                each = [measure(stage, exact, dim, seed) for seed in range(options.seeds)]
                mean = [statistics.fmean(column) for column in zip(*each, strict=True)]
                print(f"{dim:>8}" + "".join(f"{value:>11.3f}" for value in mean), flush=True)
                if mean[1] > 0.9:
                    worst = max(worst, abs(mean[0] - mean[1]))
    if not options.wire:
        print(f"\nlargest |predicted - found| where found is above 0.9: {worst:.4f}")


if __name__ == "__main__":
    main()

"""How true sketched alignments are, and whether the scorer's `reliability` foretells it.

    python tests/bench/bench_fidelity.py [--pool N] [--seeds N] [--updates 0 10]

GRPO gradients of the demo's base model, as trained and after updates of GRPO, in all regimes; k from 1,024 to 65,536.
Predicted is `reliability` of the sketched alignments alone; found is their correlation with the exact cosines. Each
figure is a mean over hash seeds.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from grpo_gradients import Stage, cosines, overlap, pearson, spearman

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


def main() -> None:
    """Print a table a regime and stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pool", type=int, default=512)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--updates", type=int, nargs="+", default=[0, 10])
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
            print("       k   predicted   Pearson  Spearman  top eighth")
            for dim in DIMS:
                each = [measure(stage, exact, dim, seed) for seed in range(options.seeds)]
                mean = [statistics.fmean(column) for column in zip(*each, strict=True)]
                print(f"{dim:>8}" + "".join(f"{value:>11.3f}" for value in mean), flush=True)
                if mean[1] > 0.9:
                    worst = max(worst, abs(mean[0] - mean[1]))
    print(f"\nlargest |predicted - found| where found is above 0.9: {worst:.4f}")


if __name__ == "__main__":
    main()

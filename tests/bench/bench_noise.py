"""How far rollouts decide an alignment, beside how far the sketch does: rank correlations on one policy.

Two sets of rollouts of the same problems at the same weights give two sets of exact alignments; what they do not agree on is
noise that no projection adds to. Run: python tests/bench/bench_noise.py
"""

from __future__ import annotations

import argparse

import torch
from grpo_gradients import Stage, cosines, spearman

from gradalign.sketch import Sketcher


def agreement(one: torch.Tensor, other: torch.Tensor) -> float:
    """Spearman's correlation over the problems that have a signal in both sets."""
    both = torch.isfinite(one) & torch.isfinite(other)
    return spearman(one[both], other[both])


def measure(regime: str, updates: int, options: argparse.Namespace) -> None:
    """Print a row for each group size."""
    for group in options.rollouts:
        stage = Stage(regime, updates=updates, pool=options.pool, group=group)
        first = stage.exact()
        rows, target = stage.sketches(Sketcher(stage.model, dim=options.dim, seed=0))
        sketched = agreement(first, cosines(rows, target))
        stage.draw_pool()
        candidates = agreement(first, stage.exact())
        stage.draw_validation()
        both = agreement(first, stage.exact())
        signal = f"{int(torch.isfinite(first).sum())} of {options.pool}"
        print(
            f"| {regime}, {updates} | {group} | {signal} | {sketched:.3f} | {candidates:.3f} | {both:.3f} |", flush=True
        )


def main() -> None:
    """Print a table of regimes, stages and group sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pool", type=int, default=512)
    parser.add_argument("--dim", type=int, default=8192)
    parser.add_argument("--updates", type=int, nargs="+", default=[0, 10])
    parser.add_argument("--rollouts", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--regimes", nargs="+", default=["misconception", "inverted", "imbalance", "low-utility"])
    options = parser.parse_args()
    print(
        f"| regime, updates | rollouts | with a signal | sketch, k = {options.dim} | other rollouts | and another v |"
    )
    print("|---|---|---|---|---|---|")
    for regime in options.regimes:
        for updates in options.updates:
            measure(regime, updates, options)


if __name__ == "__main__":
    main()

"""How far rollouts decide an alignment, beside how far the sketch does: rank correlations on one policy.

Two sets of rollouts of the same problems at the same weights give two sets of exact alignments; what they do not agree on is
noise that no projection adds to. Run: python tests/bench/bench_noise.py
"""

from __future__ import annotations

import argparse

import torch
from bench_rollouts import over_norms, products
from grpo_gradients import Stage, cosines, ranks, spearman
from torch import Tensor

from gradalign.sketch import Sketcher

COLUMNS = (
    "regime, updates", "rollouts", "with a signal", "sketch", "other rollouts", "and another v", "of good problems",
    "good before bad", "the scorer's word",
)  # fmt: skip


def agreement(one: Tensor, other: Tensor, of: Tensor | None = None) -> str:
    """Spearman's correlation over the problems that have a signal in both sets, some of them only if `of` says which."""
    both = torch.isfinite(one) & torch.isfinite(other)
    if of is not None:
        both &= of
    return "" if int(both.sum()) < 8 else f"{spearman(one[both], other[both]):.3f}"


def good_first(alignments: Tensor, good: Tensor) -> str:
    """How often a good problem ranks before a bad one, of those with a signal (the area under the curve)."""
    found = torch.isfinite(alignments)
    order, good = ranks(alignments[found]) + 1, good[found]
    several, others = int(good.sum()), int((~good).sum())
    if not several or not others:
        return ""
    return f"{float(order[good].sum() - several * (several + 1) / 2) / (several * others):.3f}"


def told(stage: Stage, alignments: Tensor) -> str:
    """`rollout_reliability`, as the scorer would answer to these rollouts: each problem's products over its norm."""
    return f"{over_norms(products(stage), alignments.nan_to_num())[0]:.3f}"


def measure(regime: str, updates: int, options: argparse.Namespace) -> None:
    """Print a row for each group size."""
    for group in options.rollouts:
        stage = Stage(regime, updates=updates, pool=options.pool, group=group)
        good = stage.good
        first = stage.exact()
        word = told(stage, first)
        rows, target = stage.sketches(Sketcher(stage.model, dim=options.dim, seed=0))
        sketched = agreement(first, cosines(rows, target))
        stage.draw_pool()
        candidates = agreement(first, stage.exact())
        stage.draw_validation()
        second = stage.exact()
        signal = f"{int(torch.isfinite(first).sum())} of {options.pool}"
        fresh = (agreement(first, second), agreement(first, second, good), good_first(first, good))
        cells = (f"{regime}, {updates}", str(group), signal, sketched, candidates, *fresh, word)
        print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print a table of regimes, stages and group sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pool", type=int, default=512)
    parser.add_argument("--dim", type=int, default=8192)
    parser.add_argument("--updates", type=int, nargs="+", default=[0, 10])
    parser.add_argument("--rollouts", type=int, nargs="+", default=[4, 8, 16, 32, 64])
    parser.add_argument("--regimes", nargs="+", default=["misconception", "inverted", "imbalance", "low-utility"])
    options = parser.parse_args()
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for regime in options.regimes:
        for updates in options.updates:
            measure(regime, updates, options)


if __name__ == "__main__":
    main()

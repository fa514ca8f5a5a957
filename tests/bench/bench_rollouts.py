"""The rollout reliability that the scorer predicts from one set of rollouts, beside what a second set of them shows.

    python tests/bench/bench_rollouts.py [--pool N] [--updates N ...] [--rollouts N ...] [--regimes NAME ...]

Two sets of rollouts of the same problems at the same weights, and the exact product of every rollout with one validation
gradient. Each set predicts the correlation of its problems' products with the other's; the correlation itself stands beside.
"""

from __future__ import annotations

import argparse

import torch
from grpo_gradients import CHUNK, Stage, pearson, spearman
from torch import Tensor

from gradalign.sketch import Sketcher
from gradalign_scorer.ranking.reliability import RolloutProducts, ranking_noise


def products(stage: Stage) -> Tensor:
    """Exact products of the pool's rollouts with the unit validation gradient, float64 [problems, rollouts]."""
    sketcher = Sketcher(stage.model, dim=64)
    stage.validate()
    against = sketcher.gradients()
    found = []
    for start in range(0, len(stage.pool.advantage), CHUNK):
        part = stage.pool.part(start, start + CHUNK)
        # A rollout at a time: its share of its problem's loss is what its row of the batch adds to the gradient.
        with sketcher.capture(torch.arange(len(part.index)), keep_grad=False, against=against) as captured:
            part.losses(stage.model).sum().backward()
        assert captured.dots is not None
        found.append(captured.dots.view(part.advantage.shape))
    return torch.cat(found).double()


def predicted(rows: Tensor) -> float:
    """What the scorer would answer."""
    rollouts = RolloutProducts.of(rows.tolist())
    noise = ranking_noise(rollouts.sums, rollouts.errors)
    assert noise is not None
    return noise.reliability


def measure(regime: str, updates: int, options: argparse.Namespace) -> None:
    """Print a row for each group size."""
    for group in options.rollouts:
        stage = Stage(regime, updates=updates, pool=options.pool, group=group)
        first = products(stage)
        stage.draw_pool()
        second = products(stage)
        sums = first.sum(dim=1), second.sum(dim=1)
        print(
            f"| {regime}, {updates} | {group} | {predicted(first):.2f}, {predicted(second):.2f} | {pearson(*sums):.2f} | "
            f"{spearman(*sums):.2f} |",
            flush=True,
        )


def main() -> None:
    """Print a table of regimes, stages and group sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", type=int, default=512)
    parser.add_argument("--updates", type=int, nargs="+", default=[0, 10])
    parser.add_argument("--rollouts", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--regimes", nargs="+", default=["inverted", "imbalance", "low-utility"])
    options = parser.parse_args()
    print(
        "| regime, updates | rollouts | predicted by each set | Pearson of the two | Spearman |\n|---|---|---|---|---|"
    )
    for regime in options.regimes:
        for updates in options.updates:
            measure(regime, updates, options)


if __name__ == "__main__":
    main()

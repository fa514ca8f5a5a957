"""The rollout reliability that the scorer predicts from one set of rollouts, beside what a second set of them shows.

    python tests/bench/bench_rollouts.py [--pool N] [--updates N ...] [--rollouts N ...] [--regimes NAME ...]

Two sets of rollouts of the same problems at the same weights, and the exact product of every rollout with one validation
gradient. Each set predicts the correlation of its problems' products with the other's; the correlation itself stands beside.
The same for cosines, which are products over exact norms, beside what their own errors would predict.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from grpo_gradients import CHUNK, Stage, pearson, spearman
from torch import Tensor

from gradalign.sketch import Sketcher
from gradalign_scorer.ranking.reliability import RolloutProducts, errors_over_norms, ranking_noise


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


def over_norms(rows: Tensor, cosines: Tensor) -> tuple[float, float]:
    """What the scorer would answer to products with exact norms, and what their quotients alone would tell."""
    rollouts, quotients = RolloutProducts.of(rows.tolist()), cosines.numpy()
    norms = np.divide(rollouts.sums, quotients, out=np.zeros(len(rows)), where=quotients != 0)
    alone = np.divide(rollouts.errors, norms, out=np.zeros(len(rows)), where=norms > 0)
    found = [ranking_noise(quotients, errors) for errors in (errors_over_norms(rollouts, norms, quotients), alone)]
    return tuple(0.0 if noise is None else noise.reliability for noise in found)


def measure(regime: str, updates: int, options: argparse.Namespace) -> None:
    """Print a row for each group size."""
    for group in options.rollouts:
        stage = Stage(regime, updates=updates, pool=options.pool, group=group)
        first, cosines = products(stage), stage.exact().nan_to_num()
        stage.draw_pool()
        second, others = products(stage), stage.exact().nan_to_num()
        sums = first.sum(dim=1), second.sum(dim=1)
        told, alone = over_norms(first, cosines)
        cells = (
            f"{regime}, {updates}", str(group), f"{predicted(first):.2f}, {predicted(second):.2f}", f"{pearson(*sums):.2f}",
            f"{spearman(*sums):.2f}", f"{told:.2f}", f"{pearson(cosines, others):.2f}", f"{alone:.2f}",
        )  # fmt: skip
        print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print a table of regimes, stages and group sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", type=int, default=512)
    parser.add_argument("--updates", type=int, nargs="+", default=[0, 10])
    parser.add_argument("--rollouts", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--regimes", nargs="+", default=["inverted", "imbalance", "low-utility"])
    options = parser.parse_args()
    print(
        "| regime, updates | rollouts | products: predicted by each set | Pearson of the two | Spearman "
        "| cosines: predicted | Pearson of the two | by quotients alone |\n|" + "---|" * 8
    )
    for regime in options.regimes:
        for updates in options.updates:
            measure(regime, updates, options)


if __name__ == "__main__":
    main()

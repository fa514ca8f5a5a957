"""What an old sketch is worth: rankings by sketches of an earlier policy against the validation gradient of the present one.

    python tests/bench/bench_stale.py [--regimes ...] [--training random oracle] [--stales 1 2 4 ...] [--begin N]

A pool is sketched after `--begin` updates of GRPO. After so many updates more the validation gradient is taken anew, and so
are fresh rollouts of the pool. The table has Spearman's correlation with the fresh alignments of: another set of fresh
rollouts of the same policy (the most that any ranking can reach), the old sketches against the new gradient (what a bank of
sketches would rank by), and the old alignments themselves (what is there without a bank); all over problems with a signal in
every set. The last three columns are how often a good problem ranks before a bad one. `random` trains on the pool's
problems as they come, `oracle` on good ones.
"""

from __future__ import annotations

import argparse

import torch
from bench_noise import agreement, good_first
from grpo_gradients import Stage, cosines
from torch import Tensor

from gradalign.sketch import Sketcher

COLUMNS = (
    "regime, training", "updates old", "with a signal", "fresh again", "old sketches, new gradient", "old alignments",
    "good first: fresh", "old sketches", "old alignments",
)  # fmt: skip


def measure(regime: str, training: str, options: argparse.Namespace) -> None:
    """Print a row for each age."""
    stage = Stage(regime, updates=0, pool=options.pool, training=training)
    stage.train(options.begin)
    stage.draw_pool()
    stage.draw_validation()
    sketcher = Sketcher(stage.model, dim=options.dim, seed=0)
    old_rows, old_target = stage.sketches(sketcher)
    old = cosines(old_rows, old_target)
    age = 0
    for updates in options.stales:
        stage.train(updates - age)
        age = updates
        stage.draw_validation()
        fresh = []
        for _ in range(2):
            stage.draw_pool()
            rows, target = stage.sketches(sketcher)
            fresh.append(cosines(rows, target))
        kept = cosines(old_rows, target)
        print_row(f"{regime}, {training}", str(age), fresh, kept, old, stage.good)


def print_row(name: str, age: str, fresh: list[Tensor], kept: Tensor, old: Tensor, good: Tensor) -> None:
    """One age of one training."""
    both = torch.isfinite(fresh[0]) & torch.isfinite(fresh[1]) & torch.isfinite(old)
    told = [agreement(fresh[0], other, both) for other in (fresh[1], kept, old)]
    first = [good_first(torch.where(both, other, torch.nan), good) for other in (fresh[0], kept, old)]
    print(f"| {' | '.join((name, age, f'{int(both.sum())} of {len(both)}', *told, *first))} |", flush=True)


def main() -> None:
    """Print a table of regimes, trainings and ages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", type=int, default=512)
    parser.add_argument("--dim", type=int, default=8192)
    parser.add_argument("--begin", type=int, default=4)
    parser.add_argument("--stales", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--training", nargs="+", default=["random", "oracle"], choices=["random", "oracle"])
    parser.add_argument("--regimes", nargs="+", default=["misconception", "inverted", "imbalance", "low-utility"])
    options = parser.parse_args()
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for regime in options.regimes:
        for training in options.training:
            measure(regime, training, options)


if __name__ == "__main__":
    main()

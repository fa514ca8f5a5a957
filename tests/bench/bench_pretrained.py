"""How far rollouts decide a ranking, and what an old sketch is worth, on the policy of a pretrained world.

    python tests/bench/bench_pretrained.py noise --model FOLDER [--regimes ...] [--updates 0 8] [--rollouts 8 16] [--pool N]
    python tests/bench/bench_pretrained.py stale --model FOLDER [--regimes ...] [--ages 1 2 4 8] [--pool N]

`noise`: rankings by products of forward passes, of two sets of rollouts at the same weights, as bench_noise.py has them for
the arithmetic world. `stale`: as bench_stale.py, by sketches; it trains on problems as they come. `--world` takes smollm2,
or a folder with a world.toml.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from bench_noise import agreement, good_first
from bench_stale import COLUMNS as STALE_COLUMNS
from bench_stale import print_row
from grpo_gradients import cosines
from torch import Tensor

from gradalign_scorer.ranking.reliability import RolloutProducts, ranking_noise
from gradalign_trainer.grpo.rollouts import ScoredRollouts
from gradalign_trainer.policy.policy import Policy
from gradalign_trainer.problems import Problem
from gradalign_trainer.reproduce.grid.cells import Cell, Recipe
from gradalign_trainer.runs.data import load_run_data
from gradalign_trainer.worlds.tasks.registry import world_of

NOISE_COLUMNS = (
    "regime, updates", "rollouts", "with a signal", "other rollouts", "and another v", "of good problems",
    "good before bad", "the scorer's word",
)  # fmt: skip


class PretrainedStage:
    """A world's policy in one regime, with a pool to score: the last problems; the others are trained on.

    Args:
        regime: of the world.
        alignment: `forward` or `capture`.
        options: of the command.
    """

    def __init__(self, regime: str, alignment: str, options: argparse.Namespace) -> None:
        world = world_of(options.world)
        recipe = Recipe(world=world, long=False)
        base = Path(options.model)
        config = recipe.config(Cell(0, regime, "random"), base, Path("nowhere"), None)
        self.config = replace(config, alignment=alignment)
        self.policy = Policy(self.config, base)
        self.data = load_run_data(self.config, self.policy.tokenizer)
        self.problems = self.data.pool[-options.pool :]
        self.good = torch.tensor([bool(problem.extra["good"]) for problem in self.problems])
        self._drawn = self._step = 0

    def train(self, updates: int) -> None:
        """So many updates on problems as they come."""
        size = self.config.batch_problems
        for _ in range(updates):
            self.policy.update(self._rollouts(self.data.pool[size * self._step :][:size], self.config.group_size))
            self._step += 1

    def draw(self, group: int) -> ScoredRollouts:
        """Fresh rollouts of the problems to score."""
        return self._rollouts(self.problems, group)

    def draw_validation(self) -> ScoredRollouts:
        """Fresh rollouts of the trusted problems."""
        return self._rollouts(self.data.validation, 2 * self.config.validation_rollouts)

    def _rollouts(self, problems: list[Problem], group: int) -> ScoredRollouts:
        self._drawn += 1
        return self.policy.rollouts(problems, self.data.reward, group, self.policy.generator("bench", self._drawn))


def noise(regime: str, options: argparse.Namespace) -> None:
    """Print a row for each stage and group size."""
    stage, done = PretrainedStage(regime, "forward", options), 0
    for updates in options.updates:
        stage.train(updates - done)
        done = updates
        for group in options.rollouts:
            meter = stage.policy.meter
            meter.validation(stage.draw_validation())
            first = meter.candidates(stage.draw(group)).products
            other = meter.candidates(stage.draw(group)).products
            meter.validation(stage.draw_validation())
            second = meter.candidates(stage.draw(group)).products
            told = RolloutProducts.of(first)
            word = ranking_noise(told.sums, told.errors)
            one, two, three = (_sums(rows) for rows in (first, other, second))
            cells = (
                f"{regime}, {updates}", str(group), f"{int(torch.isfinite(one).sum())} of {len(one)}",
                agreement(one, two), agreement(one, three), agreement(one, three, stage.good),
                good_first(one, stage.good), "" if word is None else f"{word.reliability:.3f}",
            )  # fmt: skip
            print(f"| {' | '.join(cells)} |", flush=True)


def _sums(products: list[list[float]]) -> Tensor:
    """Of each problem's products, float64 [P]; NaN where there is no signal."""
    return torch.tensor([sum(row) if any(row) else float("nan") for row in products], dtype=torch.float64)


def stale(regime: str, options: argparse.Namespace) -> None:
    """Print a row for each age."""
    stage = PretrainedStage(regime, "capture", options)
    old_rows, old_target = _sketches(stage)
    old, age = cosines(old_rows, old_target), 0
    for updates in options.ages:
        stage.train(updates - age)
        age = updates
        rows, target = _sketches(stage)
        again = stage.policy.meter.candidates(stage.draw(stage.config.group_size)).sketches
        fresh = [cosines(rows, target), cosines(again, target)]
        print_row(f"{regime}, random", str(age), fresh, cosines(old_rows, target), old, stage.good)


def _sketches(stage: PretrainedStage) -> tuple[Tensor, Tensor]:
    """Sketches of fresh rollouts of the pool, [P, k], and of the validation gradient, [k]."""
    trusted = stage.policy.meter.validation(stage.draw_validation())
    target = torch.tensor(trusted.tokens, dtype=torch.float32) @ trusted.sketches
    return stage.policy.meter.candidates(stage.draw(stage.config.group_size)).sketches, target


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["noise", "stale"])
    parser.add_argument("--world", default="smollm2")
    parser.add_argument("--model", required=True)
    parser.add_argument("--pool", type=int, default=64)
    parser.add_argument("--updates", type=int, nargs="+", default=[0, 8])
    parser.add_argument("--rollouts", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--ages", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--regimes", nargs="+", default=["clean", "inverted", "imbalance"])
    options = parser.parse_args()
    columns, measure = (NOISE_COLUMNS, noise) if options.what == "noise" else (STALE_COLUMNS, stale)
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
    for regime in options.regimes:
        measure(regime, options)


if __name__ == "__main__":
    main()

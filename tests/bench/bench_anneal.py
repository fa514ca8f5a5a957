"""Is alignment worth its price to the end of a run? One half by weights of alignment, the other by something cheaper.

    python tests/bench/bench_anneal.py [--regimes inverted imbalance low-utility clean] [--seeds 3] [--rollouts 61440]

In the arithmetic world `forward-weights` trains for half of the rollouts. From its model on the same number again is spent
by `forward-weights`, `posterior` and `full`, each with a new optimizer, so that they differ in the problems alone. A row is
held-out pass@1 at the half, and at the end by each.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from gradalign_trainer.config.training import TrainConfig
from gradalign_trainer.curriculum.localscorer import local_scorer
from gradalign_trainer.grpo.models import load_tokenizer
from gradalign_trainer.records import RunResult
from gradalign_trainer.reporting.console import hush_weights
from gradalign_trainer.reproduce.grid.cells import Cell, Recipe
from gradalign_trainer.runs.data import load_run_data
from gradalign_trainer.runs.loop import train

FIRST, THEN = "forward-weights", ("forward-weights", "posterior", "full")


def rollouts_of_a_round(config: TrainConfig) -> int:
    """That a round draws: of the problems trained on, and of the trusted ones where they are asked."""
    trained = config.batch_problems * config.updates_per_round * config.group_size
    asked = config.validation_subset or config.validation_problems
    return trained + (asked * config.validation_rollouts if config.mode == "weight" else 0)


def spent(config: TrainConfig, rollouts: int) -> TrainConfig:
    """The run of so many rollouts, evaluated at its end, and kept then."""
    rounds = round(rollouts / rollouts_of_a_round(config))
    return replace(config, rounds=rounds, evaluate_every=rounds, checkpoint_every=rounds)


def played(config: TrainConfig) -> RunResult:
    """The run."""
    return train(config, load_run_data(config, load_tokenizer(config.model)), config.model)


def last(result: RunResult) -> str:
    """Held-out pass@1 at the end, and the rollouts that it took."""
    rollouts = sum(report.figures.get("rollouts", 0.0) for report in result.reports[-1:])
    return f"{result.reports[-1].pass_rate:.3f} ({rollouts:.0f})"


def row(regime: str, seed: int, rollouts: int, url: str, folder: Path) -> str:
    """One line of the table."""
    recipe = Recipe()
    half = spent(recipe.config(Cell(seed, regime, FIRST), Path("base"), folder / "half", url), rollouts // 2)
    base = recipe.world.base(half.model_cache.expanduser(), seed % recipe.world.bases)
    half = replace(half, run_id=f"anneal-{regime}-{seed}", model=str(base))
    cells = [last(played(half))]
    (model,) = (half.output / "checkpoints").iterdir()
    for method in THEN:
        config = recipe.config(Cell(seed, regime, method), model, folder / method, url)
        config = replace(config, run_id=f"anneal-{regime}-{seed}-{method}")
        cells.append(last(played(replace(spent(config, rollouts // 2), checkpoint_every=0))))
    return f"| {regime} | {seed} | {' | '.join(cells)} |"


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--regimes", nargs="+", default=["inverted", "imbalance", "low-utility", "clean"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rollouts", type=int, default=61440)
    options = parser.parse_args()
    torch.set_num_threads(1)
    hush_weights()
    logging.basicConfig(level=logging.ERROR)
    print(f"| regime | seed | half by `{FIRST}` | then {' | then '.join(f'`{name}`' for name in THEN)} |")
    print(f"|---|---|---|{'---|' * len(THEN)}", flush=True)
    with local_scorer() as url:
        for seed in range(options.seeds):
            for regime in options.regimes:
                with tempfile.TemporaryDirectory(prefix="bench-anneal-") as folder:
                    print(row(regime, seed, options.rollouts, url, Path(folder)), flush=True)


if __name__ == "__main__":
    main()

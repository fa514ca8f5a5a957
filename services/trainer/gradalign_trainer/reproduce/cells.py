"""The cells of the grid: one training run each, of a regime, a method and a seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gradalign_trainer.basemodel import BaseTraining
from gradalign_trainer.config import TrainConfig
from gradalign_trainer.reproduce.methods import METHODS, ON_TRUSTED_ONLY, TRUSTED

__all__ = ["BASES", "ROLLOUTS", "UPDATES", "Cell", "base_training", "cells_of", "run_id"]

BASES = 3
"""Base models; seed s begins with base s % 3."""

UPDATE_ROUNDS = 30
UPDATES = 60
"""Where methods are compared at equal updates."""

ROLLOUTS = 61_440
"""Where they are compared at equal rollouts: what `cosine` spends on its 60 updates."""

_COMMON: dict[str, Any] = {
    "device": "cpu",
    "pool_size": 128,
    "select_fraction": 1 / 8,
    "group_size": 8,
    "validation_problems": TRUSTED,
    "validation_rollouts": 16,
    "updates_per_round": 2,
    "batch_problems": 16,
    "learning_rate": 2e-4,
    "problems_per_backward": 32,
    "checkpoint_every": 0,
}


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """One run of the grid.

    Attributes:
        seed: of problems and rollouts, and of the base model it begins with (`BASES`).
        regime: key of `worlds.REGIMES`.
        method: key of `METHODS`.
    """

    seed: int
    regime: str
    method: str

    def __str__(self) -> str:
        return f"{self.regime}, {self.method}, seed {self.seed}"

    def settings(self, *, long: bool) -> dict[str, Any]:
        """Of its run, all but where it runs.

        Args:
            long: as many rounds as equal rollouts and seconds ask for, not only those of equal updates.
        """
        method, world = METHODS[self.method], f"arithmetic:{self.regime}"
        trusted: dict[str, Any] = {"kind": "arithmetic", "task": f"{self.regime}/validation", "limit": TRUSTED}
        return {
            **_COMMON,
            "seed": self.seed,
            "pool": trusted if self.method in ON_TRUSTED_ONLY else f"{world}/pool",
            "validation": f"{world}/validation",
            "heldout": f"{world}/heldout",
            "rounds": method.rounds if long else UPDATE_ROUNDS,
            "evaluate_every": method.evaluate_every,
            **method.changes,
        }

    def digest(self) -> str:
        """Of everything that decides its curve but for its length: results of one digest belong together."""
        settings = {**self.settings(long=False), "base": asdict(base_training(self.seed))}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]

    def config(self, base: Path, output: Path, scorer_url: str | None, *, long: bool) -> TrainConfig:
        """Its run.

        Args:
            base: folder of its base model.
            output: folder of the run.
            scorer_url: of the scorer.
            long: as in `settings`.
        """
        where: dict[str, Any] = {"run_id": run_id(self), "output": output, "model": str(base), "scorer_url": scorer_url}
        return TrainConfig(**self.settings(long=long), **where)


def run_id(cell: Cell) -> str:
    """The name of a cell's run at the scorer; the same each time, since it seeds strategies with chance in them."""
    return f"reproduce-{cell.regime}-{cell.method.replace('+', '-and-')}-{cell.seed}"


def base_training(seed: int) -> BaseTraining:
    """How the base model of a seed is trained: twice as long as the demo's, so that the three are more alike."""
    return BaseTraining(steps=2000, seed=seed % BASES)


def cells_of(regimes: Sequence[str], methods: Sequence[str], seeds: int) -> list[Cell]:
    """All cells, seeds outermost, so that whole tables exist early."""
    return [Cell(seed, regime, method) for seed in range(seeds) for regime in regimes for method in methods]

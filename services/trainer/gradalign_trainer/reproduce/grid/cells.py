"""The cells of the grid: one training run each, of a regime, a method and a seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gradalign_trainer.config.training import TrainConfig
from gradalign_trainer.reproduce.grid.methods import METHODS, ON_TRUSTED_ONLY, TRUSTED
from gradalign_trainer.worlds.basemodel import BaseTraining

__all__ = ["BASES", "ROLLOUTS", "UPDATES", "UPDATE_ROUNDS", "Cell", "Recipe", "cells_of", "run_id"]

BASES = 3
"""Base models; seed s begins with base s % 3."""

UPDATE_ROUNDS = 30
UPDATES = 60
"""Where methods are compared at equal updates."""

ROLLOUTS = 61_440
"""Where they are compared at equal rollouts: what `cosine` spends on its 60 updates."""

ANY = "misconception"
"""A regime for runs that see nothing of it: trusted and held-out problems are the same in all."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How the cells are run.

    Attributes:
        long: as many rounds as equal rollouts and seconds ask for, not only those of equal updates.
        changes: settings of `TrainConfig`, as JSON can write them, that differ in all runs from those of the paper.
        base_steps: supervised updates of the base models; twice the demo's, since they are more alike then.
    """

    long: bool = True
    changes: Mapping[str, Any] = field(default_factory=dict)
    base_steps: int = 2000

    def base(self, seed: int) -> BaseTraining:
        """How the base model of a seed is trained."""
        return BaseTraining(steps=self.base_steps, seed=seed % BASES)

    def digest(self, cell: Cell) -> str:
        """Of everything that decides a cell's curve but for its length; cells of one digest have the same."""
        settings = {**self._settings(cell, long=False), "base": asdict(self.base(cell.seed))}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]

    def config(self, cell: Cell, base: Path, output: Path, scorer_url: str | None) -> TrainConfig:
        """The run of a cell.

        Args:
            cell: which.
            base: folder of its base model.
            output: folder of the run.
            scorer_url: of the scorer.
        """
        where: dict[str, Any] = {"run_id": run_id(cell), "output": output, "model": str(base), "scorer_url": scorer_url}
        return TrainConfig(**self._settings(cell, long=self.long), **where)

    def _settings(self, cell: Cell, *, long: bool) -> dict[str, Any]:
        method, alone = METHODS[cell.method], cell.method in ON_TRUSTED_ONLY
        regime = ANY if alone else cell.regime
        trusted: dict[str, Any] = {"kind": "arithmetic", "task": f"{regime}/validation", "limit": TRUSTED}
        settings: dict[str, Any] = {
            **_COMMON,
            "seed": cell.seed,
            "pool": trusted if alone else _pool(regime, method.pool),
            "validation": f"arithmetic:{regime}/validation",
            "heldout": f"arithmetic:{regime}/heldout",
            "evaluate_every": method.evaluate_every,
            **method.changes,
        }
        settings["rounds"] = method.rounds if long else UPDATES // settings["updates_per_round"]
        return {**settings, **self.changes}


def _pool(regime: str, limit: int | None) -> Any:
    whole = f"arithmetic:{regime}/pool"
    return whole if limit is None else {"kind": "arithmetic", "task": f"{regime}/pool", "limit": limit}


def run_id(cell: Cell) -> str:
    """The name of a cell's run at the scorer; the same each time, since it seeds strategies with chance in them."""
    return f"reproduce-{cell.regime}-{cell.method.replace('+', '-and-')}-{cell.seed}"


def cells_of(regimes: Sequence[str], methods: Sequence[str], seeds: int) -> list[Cell]:
    """All cells, seeds outermost, so that whole tables exist early."""
    return [Cell(seed, regime, method) for seed in range(seeds) for regime in regimes for method in methods]

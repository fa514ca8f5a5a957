"""The cells of the grid: one training run each, of a regime, a method and a seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradalign_trainer.config.training import TrainConfig
from gradalign_trainer.reproduce.grid.methods import ON_TRUSTED_ONLY, methods_at
from gradalign_trainer.world import Scale, World
from gradalign_trainer.worlds.builtin import ArithmeticWorld

__all__ = ["Cell", "Recipe", "cells_of", "run_id"]

_COMMON: Mapping[str, Any] = {
    "device": "cpu",
    "learning_rate": 2e-4,
    "problems_per_backward": 32,
    "checkpoint_every": 0,
}


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """One run of the grid.

    Attributes:
        seed: of problems and rollouts, and of the base model it begins with.
        regime: of the world.
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
        world: whose problems and base models.
        long: as many rounds as equal rollouts and seconds ask for, not only those of equal updates.
        changes: settings of `TrainConfig`, as JSON can write them, that differ in all runs from those of the world.
    """

    world: World = field(default_factory=ArithmeticWorld)
    long: bool = True
    changes: Mapping[str, Any] = field(default_factory=dict)

    def digest(self, cell: Cell) -> str:
        """Of everything that decides a cell's curve but for its length; cells of one digest have the same."""
        settings = {**self._settings(cell, long=False), "base": dict(self.world.base_facts(cell.seed))}
        settings.pop("vllm_memory", None)  # what fits a machine decides no curve
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]

    def config(self, cell: Cell, base: Path, output: Path, scorer_url: str | None) -> TrainConfig:
        """The run of a cell.

        Args:
            cell: which.
            base: folder of its base model.
            output: folder of the run.
            scorer_url: of the scorer.
        """
        name = run_id(cell, self.world.name)
        where: dict[str, Any] = {"run_id": name, "output": output, "model": str(base), "scorer_url": scorer_url}
        return TrainConfig(**self._settings(cell, long=self.long), **where)

    def _settings(self, cell: Cell, *, long: bool) -> dict[str, Any]:
        world, scale = self.world, self.world.scale
        method, alone = methods_at(scale)[cell.method], cell.method in ON_TRUSTED_ONLY
        regime = world.any_regime if alone else cell.regime
        part, limit = ("validation", scale.trusted) if alone else ("pool", method.pool)
        settings: dict[str, Any] = {
            **_COMMON,
            **_scaled(scale),
            **world.settings,
            "seed": cell.seed,
            "pool": world.source(regime, part, limit),
            "validation": world.source(regime, "validation"),
            "heldout": world.source(regime, "heldout"),
            "evaluate_every": method.evaluate_every,
            **method.changes,
        }
        settings["rounds"] = method.rounds if long else scale.updates // settings["updates_per_round"]
        return {**settings, **self.changes}


def _scaled(scale: Scale) -> dict[str, Any]:
    return {
        "pool_size": scale.candidates,
        "select_fraction": scale.batch / scale.candidates,
        "group_size": scale.group_size,
        "validation_problems": scale.trusted,
        "validation_rollouts": scale.validation_rollouts,
        "updates_per_round": scale.updates_per_round,
        "batch_problems": scale.batch,
    }


def run_id(cell: Cell, world: str = "arithmetic") -> str:
    """The name of a cell's run at the scorer; the same each time, since it seeds strategies with chance in them."""
    place = cell.regime if world == "arithmetic" else f"{world}-{cell.regime}"
    return f"reproduce-{place}-{cell.method.replace('+', '-and-')}-{cell.seed}"


def cells_of(regimes: Sequence[str], methods: Sequence[str], seeds: int) -> list[Cell]:
    """All cells, seeds outermost, so that whole tables exist early."""
    return [Cell(seed, regime, method) for seed in range(seeds) for regime in regimes for method in methods]

"""Rollout groups with what they earned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from gradalign_trainer.generation import RolloutBatch
from gradalign_trainer.problems import Problem

__all__ = ["ScoredRollouts"]


@dataclass(frozen=True, slots=True)
class ScoredRollouts:
    """Rollout groups with their rewards; row p everywhere is problem p.

    Attributes:
        problems: P problems.
        rollouts: G completions of each.
        rewards: float32 [P, G].
        advantages: float32 [P, G].
    """

    problems: Sequence[Problem]
    rollouts: RolloutBatch
    rewards: Tensor
    advantages: Tensor

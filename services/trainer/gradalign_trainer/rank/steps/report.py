"""What a ranking did, and the lines that it writes of a group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradalign_trainer.rank.steps.responses import GroupId

__all__ = ["BY_PRIORITY", "RankReport", "accuracy_line", "mean_reward", "pass_rate", "similarity_line"]

BY_PRIORITY = ("cosine", "dot", "norm", "learnalign")
"""Strategies whose priority is what the reference writes as `similarity`; of others that is the alignment."""


@dataclass(frozen=True, slots=True)
class RankReport:
    """What a ranking did.

    Attributes:
        groups: candidates ranked.
        no_signal: of them, those whose responses all got the same reward.
        bad: records left out of all files.
        left_out: groups that the problems file does not have.
        measured: gradients taken now; the rest were there from before.
        coherence: of the validation groups; None where they were pooled here.
        reliability: expected correlation of sketched with exact alignments.
        advised_dim: the dim that would do, where `reliability` is low.
        spearman: of sketched with exact alignments over the groups with a signal; None without `exact`.
        selected: ids best first.
        files: what was written.
    """

    groups: int
    no_signal: int
    bad: int
    left_out: int
    measured: int
    coherence: float | None
    reliability: float | None
    advised_dim: int | None
    spearman: float | None
    selected: Sequence[GroupId]
    files: Sequence[Path]


def mean_reward(rewards: Sequence[float]) -> float:
    """The mean of a group's rewards."""
    return float(np.mean(rewards))


def pass_rate(rewards: Sequence[float]) -> float:
    """The mean of a group's rewards, within [0, 1] as the scorer takes it."""
    return min(max(mean_reward(rewards), 0.0), 1.0)


def similarity_line(group_id: GroupId, similarity: float | None, loss: float) -> dict[str, Any]:
    """A line of `--out`."""
    return {"group_id": group_id, "similarity": similarity, "loss": loss}


def accuracy_line(group_id: GroupId, rewards: Sequence[float], similarity: float | None) -> dict[str, Any]:
    """A line of `accuracy_by_problem.jsonl`."""
    return {
        "group_id": group_id,
        "total": len(rewards),
        "correct": sum(reward > 0 for reward in rewards),
        "accuracy": mean_reward(rewards),
        "similarity": similarity,
    }

"""The rollout groups of a generation batch, as TRL lays them out over the processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from gradalign.errors import GradAlignError
from gradalign.wire.replies import Ranking

__all__ = ["Groups", "counted", "grouped"]


@dataclass(frozen=True)
class Groups:
    """The groups of a generation batch; what a process has of them is its rows of `batch`.

    Attributes:
        names: problem ids of all groups over all processes, G of them; one may repeat.
        size: rollouts of each.
        index: int64 [B], the group of each of this process's rows.
        tokens: float32 [G], counted completion tokens, over all processes.
        pass_rates: float32 [G], mean rewards in [0, 1].
        batch: what TRL's `_generate_and_score_completions` gave.
    """

    names: Sequence[str]
    size: int
    index: Tensor
    tokens: Tensor
    pass_rates: Tensor
    batch: Mapping[str, Any]

    def firsts(self, seen: set[str]) -> list[int]:
        """The groups that are the first of their problem; `seen` holds the problems of groups before, and takes up these."""
        found = []
        for group, name in enumerate(self.names):
            if name not in seen:
                seen.add(name)
                found.append(group)
        return found

    def row_weights(self, ranking: Ranking) -> list[float]:
        """The weight of each row over all processes: its rollout's, where the ranking has those of its group."""
        weights = ranking.weight_of()
        rows = [[weights.get(name, 0.0)] * self.size for name in self.names]
        if ranking.rollout_weights is not None:
            each = dict(zip(ranking.problem_ids, ranking.rollout_weights, strict=True))
            for group in self.firsts(set()):
                rows[group] = each.get(self.names[group], rows[group])
        return [weight for row in rows for weight in row]


def counted(batch: Mapping[str, Any]) -> Tensor:
    """0 or 1 [B, T]: the completion tokens that TRL's loss counts."""
    mask: Tensor = batch["completion_mask"]
    return mask * batch["tool_mask"] if "tool_mask" in batch else mask


def grouped(trainer: Any, ids: Sequence[str], batch: Mapping[str, Any], rewards: Tensor) -> Groups:
    """The groups of a batch, on every process.

    Args:
        trainer: a `trl.GRPOTrainer`.
        ids: the problem of each of this process's rows.
        batch: what TRL made of them.
        rewards: float32, of all processes' rows.

    Raises:
        GradAlignError: the batch is not in RepeatSampler's order.
    """
    accelerator, size = trainer.accelerator, int(trainer.num_generations or 1)
    everyone: list[str] = gather_object(list(ids))
    names = everyone[::size]
    if any(everyone[row] != names[row // size] for row in range(len(everyone))):
        raise GradAlignError(
            f"a generation batch does not hold every problem {size} times in a row, as RepeatSampler gives it; is "
            "_get_train_sampler or get_train_dataloader overridden? Keep RepeatSampler's order."
        )
    device = batch["advantages"].device
    index = (accelerator.process_index * len(ids) + torch.arange(len(ids), device=device)) // size
    own = torch.zeros(len(names), device=device).index_add_(0, index, counted(batch).sum(1).float())
    return Groups(
        names=names,
        size=size,
        index=index,
        tokens=accelerator.reduce(own),
        pass_rates=rewards.view(-1, size).mean(dim=1).clamp(0, 1).cpu(),
        batch=batch,
    )

"""The rollout groups of a generation batch, as TRL lays them out over the processes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from gradalign.errors import GradAlignError
from gradalign.wire.replies import Ranking

__all__ = ["Batches", "Groups", "counted", "grouped"]

logger = logging.getLogger(__name__)


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


def grouped(trainer: Any, ids: Sequence[str | None], batch: Mapping[str, Any], rewards: Tensor) -> Groups:
    """The groups of a batch, on every process.

    Args:
        trainer: a `trl.GRPOTrainer`.
        ids: the problem of each of this process's rows; None where it has none, which was said.
        batch: what TRL made of them.
        rewards: float32, of all processes' rows.

    Raises:
        GradAlignError: on all processes; the batch is not in RepeatSampler's order, or a row has no id.
    """
    accelerator, size = trainer.accelerator, int(trainer.num_generations or 1)
    given: list[str | None] = gather_object(list(ids))
    everyone = [name for name in given if name is not None]
    if len(everyone) < len(given):
        unnamed = len(given) - len(everyone)
        raise GradAlignError(f"{unnamed} of {len(given)} rows have no problem id; the log says why.")
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


class Batches:
    """Names and groups the rows of a run's batches. Where that fails, the first stops the training, and later ones do not.

    Args:
        named: gives the problem id of a row, or raises GradAlignError.
        fail_open: whether a batch may go on without a ranking.
    """

    def __init__(self, named: Callable[[Mapping[str, Any]], str], *, fail_open: bool) -> None:
        self._named, self._fail_open = named, fail_open
        self._began = self._said_unnamed = self._said_ungrouped = False

    def names(self, rows: Sequence[Mapping[str, Any]]) -> list[str | None]:
        """The problem ids of this process's rows; None for one that has none: the other processes must not wait."""
        return [self._name(row) for row in rows]

    def _name(self, row: Mapping[str, Any]) -> str | None:
        try:
            return self._named(row)
        except GradAlignError as error:
            if not self._said_unnamed:
                logger.warning("A row of a batch: %s", error)
            self._said_unnamed = True
            return None

    def groups(
        self, trainer: Any, ids: Sequence[str | None], output: Mapping[str, Any], rewards: Tensor
    ) -> Groups | None:
        """The groups of a batch; None, on all processes, where it goes on without a ranking.

        Args:
            trainer: a `trl.GRPOTrainer`.
            ids: what `names` gave.
            output: what TRL made of the rows.
            rewards: float32, of all processes' rows.

        Raises:
            GradAlignError: on all processes; the first batch cannot be grouped, or none may go on without a ranking.
        """
        try:
            found = grouped(trainer, ids, output, rewards)
        except GradAlignError as error:
            if not (self._began and self._fail_open):
                raise
            if not self._said_ungrouped:
                logger.warning(
                    "Batches like this go on as plain GRPO, counted by gradalign/fallbacks_unmeasured: %s", error
                )
            self._said_ungrouped = True
            return None
        self._began = True
        return found

"""Rollout groups with what they earned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradalign_trainer.grpo.generation import RolloutBatch, join_batches
from gradalign_trainer.problems import Problem, Reward

__all__ = ["ScoredRollouts", "join_rollouts", "reward_table"]


def reward_table(problems: Sequence[Problem], reward: Reward, rollouts: RolloutBatch) -> Tensor:
    """What every completion earns; float32 [problems, rollouts of each] on the CPU."""
    owners = [problem for problem in problems for _ in range(rollouts.group_size)]
    rewards = [reward(problem, text) for problem, text in zip(owners, rollouts.texts, strict=True)]
    return torch.tensor(rewards, dtype=torch.float32).view(len(problems), rollouts.group_size)


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

    @property
    def signal(self) -> Tensor:
        """Bool [P]: the problems whose rollouts differ in reward; the gradient of any other is zero."""
        return self.advantages.any(dim=1)

    def signal_parts(self, size: int) -> list[Tensor]:
        """The numbers of the problems with a signal, int64 on the rollouts' device, at most `size` in each part."""
        rows = self.signal.nonzero()[:, 0]
        return list(rows.split(size)) if len(rows) else []  # nothing splits into one empty part

    @property
    def pass_rates(self) -> list[float]:
        """Mean rewards of the groups, clipped to [0, 1]."""
        rates: list[float] = self.rewards.mean(dim=1).clamp(0, 1).tolist()
        return rates

    def groups(self, rows: Sequence[int]) -> ScoredRollouts:
        """The groups of some of the problems, in the order given."""
        problems = [self.problems[row] for row in rows]
        return ScoredRollouts(problems, self.rollouts.groups(rows), self.rewards[rows], self.advantages[rows])

    def unshared(self) -> ScoredRollouts:
        """The same with a row for each rollout in every forward, whatever prompts they share."""
        return replace(self, rollouts=replace(self.rollouts, share_prompts=False))


def join_rollouts(parts: Sequence[ScoredRollouts]) -> ScoredRollouts:
    """Groups of one size and one temperature, one part behind the other."""
    return ScoredRollouts(
        [problem for part in parts for problem in part.problems],
        join_batches([part.rollouts for part in parts]),
        torch.cat([part.rewards for part in parts]),
        torch.cat([part.advantages for part in parts]),
    )

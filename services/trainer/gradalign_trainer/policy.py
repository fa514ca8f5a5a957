"""The policy and what is done with it: rollouts, gradients as sketches, updates."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradalign.sketch import Sketcher
from gradalign_trainer.config import TrainConfig
from gradalign_trainer.curriculum import Measured
from gradalign_trainer.generation import RolloutBatch, Sampling, generate
from gradalign_trainer.grpo import advantages, problem_losses
from gradalign_trainer.models import load_policy, pick_device
from gradalign_trainer.problems import Problem, Reward

__all__ = ["Policy", "ScoredRollouts", "keyed_seed"]

logger = logging.getLogger(__name__)


def keyed_seed(*key: object) -> int:
    """A seed for torch that depends on the key alone, so that a resumed run draws what an unbroken one would."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, key)).encode()).digest()[:7], "little")


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


class Policy:
    """A causal LM with its optimizer and its sketcher.

    Args:
        config: of the run.
        source: folder or hub id of the model.
        training: state dicts of optimizer and scheduler to go on from.
        version: optimizer steps behind it.
    """

    def __init__(
        self, config: TrainConfig, source: str | Path, *, training: dict[str, Any] | None = None, version: int = 0
    ) -> None:
        self.config = config
        self.device = pick_device(config.device)
        self.model, self.tokenizer = load_policy(source, device=self.device, dtype=config.dtype)
        self.sketcher = Sketcher(self.model, dim=config.dim, seed=config.seed)
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(self.parameters, lr=config.learning_rate)
        warmup = max(config.warmup_steps, 1)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: min(1.0, (step + 1) / warmup))
        self.version = version
        if training is not None:
            self.optimizer.load_state_dict(training["optimizer"])
            self.scheduler.load_state_dict(training["scheduler"])

    def training_state(self) -> dict[str, Any]:
        """State dicts of optimizer and scheduler, as the constructor takes them back."""
        return {"optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict()}

    def generator(self, *key: object) -> torch.Generator:
        """A random generator on the policy's device, from the run's seed and a key."""
        return torch.Generator(self.device).manual_seed(keyed_seed(self.config.seed, *key))

    def sampling(self, group_size: int) -> Sampling:
        """The run's settings of generation."""
        config = self.config
        return Sampling(group_size, config.max_new_tokens, config.temperature, config.prompts_per_batch)

    def rollouts(
        self, problems: Sequence[Problem], reward: Reward, group_size: int, generator: torch.Generator
    ) -> ScoredRollouts:
        """Sample a group for every problem and reward each completion."""
        prompts = [problem.prompt for problem in problems]
        rollouts = generate(self.model, self.tokenizer, prompts, self.sampling(group_size), generator)
        owners = (problem for problem in problems for _ in range(group_size))
        rewards = [reward(problem, text) for problem, text in zip(owners, rollouts.texts, strict=True)]
        table = torch.tensor(rewards, dtype=torch.float32, device=self.device).view(len(problems), group_size)
        return ScoredRollouts(problems, rollouts, table, advantages(table, normalize=self.config.normalize_advantages))

    def measure(self, scored: ScoredRollouts, advance: Callable[[], None] | None = None) -> Measured:
        """The gradient of every problem, as a sketch; nothing is updated.

        Problems whose rewards are all equal have gradient zero, and cost nothing. One whose gradient is not finite
        counts as zero too, with a warning: it must not stop the run.

        Args:
            scored: rollouts at the present weights.
            advance: called after each problem.
        """
        sketches, norms = [], []
        for index in range(len(scored.problems)):
            sketch, norm = self._gradient(scored, index)
            sketches.append(sketch)
            norms.append(norm)
            if advance is not None:
                advance()
        self.optimizer.zero_grad(set_to_none=True)
        return Measured(
            problem_ids=[problem.problem_id for problem in scored.problems],
            sketches=torch.stack(sketches),
            norms=norms,
            tokens=scored.rollouts.tokens.tolist(),
            rollouts=[scored.rollouts.group_size] * len(norms),
            pass_rates=scored.rewards.mean(dim=1).clamp(0, 1).tolist(),
        )

    def _gradient(self, scored: ScoredRollouts, index: int) -> tuple[Tensor, float]:
        """Sketch, float32 [dim] on the CPU, and exact norm of one problem's gradient."""
        nothing = torch.zeros(self.config.dim), 0.0
        if not scored.advantages[index].any():
            return nothing
        self.optimizer.zero_grad(set_to_none=True)
        group = scored.rollouts.groups([index])
        problem_losses(self.model, group, scored.advantages[index : index + 1]).sum().backward()
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if not math.isfinite(norm):
            logger.warning(
                "Problem %s counts as no signal: its gradient is inf or NaN.", scored.problems[index].problem_id
            )
            return nothing
        return self.sketcher.from_grads().cpu(), norm

    def update(self, scored: ScoredRollouts, weights: Mapping[str, float] | None = None) -> float:
        """One optimizer step on the mean of the problems' losses, each times its weight; the norm of the gradient.

        Args:
            scored: rollouts at the present weights.
            weights: by problem id; 1 for all where None, 0 for a problem it lacks.
        """
        self.optimizer.zero_grad(set_to_none=True)
        share = torch.tensor(
            [1.0 if weights is None else weights.get(problem.problem_id, 0.0) for problem in scored.problems],
            device=self.device,
        ) / len(scored.problems)
        for part in torch.arange(len(scored.problems)).split(self.config.problems_per_backward):
            losses = problem_losses(self.model, scored.rollouts.groups(part.tolist()), scored.advantages[part])
            (losses * share[part]).sum().backward()
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm))
        self.optimizer.step()
        self.scheduler.step()
        self.version += 1
        return norm

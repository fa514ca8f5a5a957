"""The policy and what is done with it: rollouts, gradients as sketches, updates."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradalign.sketch import Sketcher
from gradalign_trainer.config.training import TrainConfig
from gradalign_trainer.curriculum.measured import Measured
from gradalign_trainer.grpo.generation import Sampling, generate
from gradalign_trainer.grpo.gradients import GradientMeter, ProblemSketches
from gradalign_trainer.grpo.loss import advantages, problem_losses
from gradalign_trainer.grpo.models import load_policy, pick_device
from gradalign_trainer.grpo.rollouts import ScoredRollouts
from gradalign_trainer.problems import Problem, Reward

__all__ = ["FreshGradient", "Policy", "ValidationGradient", "keyed_seed"]


def keyed_seed(*key: object) -> int:
    """A seed for torch that depends on the key alone, so that a resumed run draws what an unbroken one would."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, key)).encode()).digest()[:7], "little")


@dataclass(frozen=True, slots=True)
class FreshGradient:
    """The full gradient of validation problems at the present weights.

    Attributes:
        gradient: sum over the problems of share times gradient, by canonical parameter name.
        total: sum of the shares of all problems.
        signal_total: sum of the shares of those with a signal.
        groups: how many have a signal.
    """

    gradient: Mapping[str, Tensor]
    total: float
    signal_total: float
    groups: int


@dataclass(frozen=True, slots=True)
class ValidationGradient:
    """The full validation gradient of a version of the scorer's; with decay as long as that, else up to its length.

    Attributes:
        version: the scorer's validation version of it.
        gradient: by canonical parameter name.
    """

    version: int
    gradient: Mapping[str, Tensor]


class Policy:
    """A causal LM with its optimizer and its sketcher.

    Args:
        config: of the run.
        source: folder or hub id of the model.
        training: what `training_state` gave, to go on from.
        version: optimizer steps behind it.
    """

    def __init__(
        self, config: TrainConfig, source: str | Path, *, training: dict[str, Any] | None = None, version: int = 0
    ) -> None:
        self.config = config
        self.device = pick_device(config.device)
        self.model, self.tokenizer = load_policy(source, device=self.device, dtype=config.dtype)
        self.sketcher = Sketcher(self.model, dim=config.dim, seed=config.projection_seed)
        self._meter = GradientMeter(self.model, self.sketcher, config.problems_per_backward)
        self.validation: ValidationGradient | None = None
        self.fresh: FreshGradient | None = None
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(self.parameters, lr=config.learning_rate)
        warmup = max(config.warmup_steps, 1)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: min(1.0, (step + 1) / warmup))
        self.version = version
        if training is not None:
            self.optimizer.load_state_dict(training["optimizer"])
            self.scheduler.load_state_dict(training["scheduler"])
            if training["validation"] is not None:
                version_kept, gradient = training["validation"]
                kept = {name: part.to(self.device) for name, part in gradient.items()}
                self.validation = ValidationGradient(version_kept, kept)

    def training_state(self) -> dict[str, Any]:
        """State of optimizer, scheduler and validation gradient, as the constructor takes it back."""
        kept = self.validation
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "validation": None if kept is None else (kept.version, dict(kept.gradient)),
        }

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

    def measure(
        self,
        scored: ScoredRollouts,
        advance: Callable[[int], None] = lambda problems: None,  # noqa: ARG005
    ) -> Measured:
        """The gradients of candidates, exact products with the validation gradient included where one is kept.

        Args:
            scored: rollouts at the present weights.
            advance: told how many problems more are done.
        """
        return self._against_validation(scored, advance=advance)

    def measure_validation(
        self,
        scored: ScoredRollouts,
        advance: Callable[[int], None] = lambda problems: None,  # noqa: ARG005
    ) -> Measured:
        """The gradients of validation problems; the sum of them is kept as `fresh` where the settings need it.

        Args:
            scored: rollouts at the present weights.
            advance: told how many problems more are done.
        """
        if not (self.config.exact_alignments or self.config.train_on_validation):
            return _measured(scored, self._meter.measure(scored, advance=advance), None)
        pooled = self.config.aggregation == "pooled"
        shares = scored.rollouts.tokens.float() if pooled else torch.ones(len(scored.problems), device=self.device)
        measured = _measured(scored, self._meter.measure(scored, shares=shares, advance=advance), None)
        signal = scored.advantages.any(dim=1)
        self.fresh = FreshGradient(
            self.sketcher.gradients(), float(shares.sum()), float(shares[signal].sum()), int(signal.sum())
        )
        self.optimizer.zero_grad(set_to_none=True)
        return measured

    def keep_validation(self, version: int, decay: float | None = None) -> None:
        """Keep the gradient that `measure_validation` took as that of a validation version.

        Args:
            version: the scorer's.
            decay: share of the gradient kept before that stays in it, as the scorer was told.
        """
        if not self.config.exact_alignments or self.fresh is None:
            return
        earlier = self.validation.gradient if self.validation and decay else {}
        mean = {name: part / self.fresh.total for name, part in self.fresh.gradient.items()}
        names = [*mean, *(name for name in earlier if name not in mean)]
        gradient = {name: _sum(decay or 0.0, earlier.get(name), mean.get(name)) for name in names}
        signal = any(bool(part.any()) for part in gradient.values())
        self.validation = ValidationGradient(version, gradient) if signal else None

    def update(
        self,
        scored: ScoredRollouts,
        weights: Mapping[str, float] | None = None,
        joining: FreshGradient | None = None,
    ) -> float:
        """One optimizer step on the weighted mean of the problems' gradients; the norm of that.

        Args:
            scored: rollouts at the present weights.
            weights: by problem id; 1 for all where None, 0 for a problem it lacks.
            joining: a validation gradient at the present weights; each of its groups with a signal counts with weight 1.
        """
        self.optimizer.zero_grad(set_to_none=True)
        share = torch.tensor(
            [1.0 if weights is None else weights.get(problem.problem_id, 0.0) for problem in scored.problems],
            device=self.device,
        )
        groups = joining.groups if joining else 0
        total = float(share.sum()) + groups
        share = share / (total or 1.0)
        for part in torch.arange(len(scored.problems)).split(self.config.problems_per_backward):
            losses = problem_losses(self.model, scored.rollouts.groups(part.tolist()), scored.advantages[part])
            (losses * share[part]).sum().backward()
        if joining is not None and groups:
            factor = groups / total / joining.signal_total
            for name, parameter in self.sketcher.named():
                if name in joining.gradient:
                    parameter.grad = _sum(1.0, parameter.grad, factor * joining.gradient[name])
        return self._step()

    def update_and_measure(self, scored: ScoredRollouts) -> tuple[float, Measured]:
        """As `update`, and the gradients of the problems trained on, out of the very backwards of the update.

        They are of the policy version before the step.
        """
        share = torch.full((len(scored.problems),), 1 / len(scored.problems))
        measured = self._against_validation(scored, shares=share)
        return self._step(), measured

    def _against_validation(self, scored: ScoredRollouts, **settings: Any) -> Measured:
        """As `GradientMeter.measure`, with exact products where a validation gradient is kept."""
        kept = self.validation
        if kept is None:
            return _measured(scored, self._meter.measure(scored, **settings), None)
        return _measured(scored, self._meter.measure(scored, against=kept.gradient, **settings), kept.version)

    def _step(self) -> float:
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm))
        self.optimizer.step()
        self.scheduler.step()
        self.version += 1
        return norm


def _sum(factor: float, left: Tensor | None, right: Tensor | None) -> Tensor:
    """`factor * left + right`, where at least one is there."""
    if left is None:
        assert right is not None
        return right
    return factor * left if right is None else factor * left + right


def _measured(scored: ScoredRollouts, sketched: ProblemSketches, dots_version: int | None) -> Measured:
    group_size = scored.rollouts.group_size
    return Measured(
        problem_ids=[problem.problem_id for problem in scored.problems],
        sketches=sketched.sketches,
        tokens=scored.rollouts.tokens.tolist(),
        rollouts=[group_size] * len(scored.problems),
        pass_rates=scored.rewards.mean(dim=1).clamp(0, 1).tolist(),
        norms=None if sketched.norms is None else sketched.norms.tolist(),
        dots=None if sketched.dots is None else sketched.dots.tolist(),
        dots_version=dots_version,
    )

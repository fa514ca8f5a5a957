"""The policy and what is done with it: rollouts, updates, and whoever measures its gradients."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradalign.sketch.parameters.names import trainable_parameters
from gradalign_trainer.config.training import TrainConfig
from gradalign_trainer.curriculum.measured import Gradients
from gradalign_trainer.grpo.generation import RolloutBatch, Sampling
from gradalign_trainer.grpo.loss import advantages, problem_losses
from gradalign_trainer.grpo.models import end_at, load_policy, pick_device
from gradalign_trainer.grpo.rollouts import ScoredRollouts, reward_table
from gradalign_trainer.grpo.samplers import Sampler, TransformersSampler
from gradalign_trainer.grpo.sharing import check_sharing
from gradalign_trainer.grpo.vllm_sampler import VLLMSampler, check_vllm
from gradalign_trainer.policy.meter import FreshGradient, Meter
from gradalign_trainer.policy.products import ProductMeter
from gradalign_trainer.policy.sketches import SketchMeter
from gradalign_trainer.problems import Problem, Reward

__all__ = ["Policy", "check_generation", "keyed_seed"]


def keyed_seed(*key: object) -> int:
    """A seed for torch that depends on the key alone, so that a resumed run draws what an unbroken one would."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, key)).encode()).digest()[:7], "little")


def check_generation(config: TrainConfig) -> None:
    """Refuse settings of `generation` that cannot be met here, before a model is read.

    Args:
        config: of the run.

    Raises:
        GradAlignError: vLLM is to generate, and is not installed or is built for other devices.
    """
    if config.generation == "vllm":
        check_vllm(pick_device(config.device))


class Policy:
    """A causal LM with its optimizer and its meter.

    Attributes:
        meter: measures gradients at the present weights, by `TrainConfig.alignment`.
        parameters: that are trained.
        version: optimizer steps done.

    Args:
        config: of the run.
        source: folder or hub id of the model.
        training: what `training_state` gave, to go on from.
        version: optimizer steps behind it.

    Raises:
        GradAlignError: the model or what is installed does not allow what the settings ask for.
    """

    def __init__(
        self, config: TrainConfig, source: str | Path, *, training: dict[str, Any] | None = None, version: int = 0
    ) -> None:
        self.config = config
        self.device = pick_device(config.device)
        self.model, self.tokenizer = load_policy(
            source, device=self.device, dtype=config.dtype, lora_rank=config.lora_rank
        )
        if config.stop is not None:
            end_at(self.model, self.tokenizer, config.stop)
        if config.share_prompts:
            check_sharing(self.model)
        self._sampler = self._new_sampler()  # before numba is imported, which vLLM 0.32 for CPUs cannot start behind
        forward = config.alignment == "forward"
        self.meter: Meter = ProductMeter(config, self.model) if forward else SketchMeter(config, self.model)
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(self.parameters, lr=config.learning_rate)
        warmup = max(config.warmup_steps, 1)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: min(1.0, (step + 1) / warmup))
        self.version = version
        if training is not None:
            self.optimizer.load_state_dict(training["optimizer"])
            self.scheduler.load_state_dict(training["scheduler"])
            self.meter.load(training["validation"])

    def training_state(self) -> dict[str, Any]:
        """State of optimizer, scheduler and validation gradient, as the constructor takes it back."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "validation": self.meter.state(),
        }

    def generator(self, *key: object) -> torch.Generator:
        """A random generator on the policy's device, from the run's seed and a key."""
        return torch.Generator(self.device).manual_seed(keyed_seed(self.config.seed, *key))

    def _sampling(self, group_size: int) -> Sampling:
        config = self.config
        return Sampling(
            group_size,
            config.max_new_tokens,
            config.temperature,
            config.prompts_per_batch,
            share_prompts=config.share_prompts,
        )

    def generate(self, prompts: Sequence[str], group_size: int, generator: torch.Generator) -> RolloutBatch:
        """Sample a group for every prompt, by the run's settings."""
        return self._sampler.generate(prompts, self._sampling(group_size), generator)

    def _new_sampler(self) -> Sampler:
        config = self.config
        if config.generation == "vllm":
            return VLLMSampler(self.model, self.tokenizer, memory=config.vllm_memory, temperature=config.temperature)
        return TransformersSampler(self.model, self.tokenizer)

    def rollouts(
        self, problems: Sequence[Problem], reward: Reward, group_size: int, generator: torch.Generator
    ) -> ScoredRollouts:
        """Sample a group for every problem and reward each completion."""
        rollouts = self.generate([problem.prompt for problem in problems], group_size, generator)
        table = reward_table(problems, reward, rollouts).to(self.device)
        return ScoredRollouts(problems, rollouts, table, advantages(table, normalize=self.config.normalize_advantages))

    def update(
        self,
        scored: ScoredRollouts,
        weights: Mapping[str, float] | None = None,
        joining: FreshGradient | None = None,
        rollout_weights: Mapping[str, Sequence[float]] | None = None,
    ) -> float:
        """One optimizer step on the weighted mean of the problems' gradients; the norm of that.

        Args:
            scored: rollouts at the present weights.
            weights: by problem id; 1 for all where None, 0 for a problem it lacks.
            rollout_weights: by problem id, of each of its rollouts, in place of its weight.
            joining: a validation gradient at the present weights; each of its groups with a signal counts with weight 1.
        """
        self.optimizer.zero_grad(set_to_none=True)
        if rollout_weights is None:
            share = _shares(scored, weights)
            counted = float(share.sum())
        else:
            table = _table(scored, rollout_weights)
            scored, share = replace(scored, advantages=scored.advantages * table), torch.ones_like(table[:, 0])
            counted = float(table.mean(dim=1).sum())
        groups = joining.groups if joining else 0
        total = counted + groups
        share = share / (total or 1.0)
        for part in self._parts(scored):
            losses = problem_losses(self.model, scored.rollouts.groups(part.tolist()), scored.advantages[part])
            (losses * share[part]).sum().backward()
        if joining is not None and groups:
            factor = groups / total / joining.signal_total
            for name, parameter in trainable_parameters(self.model):
                if name in joining.gradient:
                    joined = factor * joining.gradient[name]
                    parameter.grad = joined if parameter.grad is None else parameter.grad + joined
        return self._step()

    def _parts(self, scored: ScoredRollouts) -> list[Tensor]:
        """The problems of each backward; where prompts are shared, none without a signal, whose gradient is 0."""
        size = self.config.problems_per_backward
        if self.config.share_prompts:
            return [part.cpu() for part in scored.signal_parts(size)]
        return list(torch.arange(len(scored.problems)).split(size))

    def agreements(self, scored: ScoredRollouts) -> Tensor:
        """How each rollout's gradient agrees with those of the others of the batch, float64 [P, G] on the CPU."""
        assert isinstance(self.meter, SketchMeter), "the settings were not checked"
        return self.meter.agreements(scored)

    def update_and_measure(self, scored: ScoredRollouts) -> tuple[float, Gradients]:
        """As `update`, and the gradients of the problems trained on, of the policy version before the step."""
        measured = self.meter.with_update(scored)
        if measured is not None:
            return self._step(), measured
        measured = self.meter.candidates(scored)
        return self.update(scored), measured

    def _step(self) -> float:
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm))
        self.optimizer.step()
        self.scheduler.step()
        self.version += 1
        self._sampler.weights_changed()
        return norm


def _shares(scored: ScoredRollouts, weights: Mapping[str, float] | None) -> Tensor:
    """Weights of the problems, float32 [P]; 1 where none are given."""
    found = [1.0 if weights is None else weights.get(problem.problem_id, 0.0) for problem in scored.problems]
    return torch.tensor(found, device=scored.advantages.device)


def _table(scored: ScoredRollouts, weights: Mapping[str, Sequence[float]]) -> Tensor:
    """Weights of the rollouts, float32 [P, G]; 0 for a problem without any."""
    none = [0.0] * scored.rollouts.group_size
    found = [weights.get(problem.problem_id, none) for problem in scored.problems]
    return torch.tensor(found, dtype=torch.float32, device=scored.advantages.device)

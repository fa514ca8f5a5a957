"""Group-relative policy optimisation at ratio 1: advantages, and the loss of a rollout group.

The loss of one problem is `-(1/Z) sum_i A_i sum_t log pi(y_it)`, Z the completion tokens of its group (Shao et al.
2024, arXiv 2402.03300, with the token mean of DAPO, arXiv 2503.14476). It is one number per problem, whatever the
batch: the GradAlign reference divides per mini-batch, so that its gradients depend on batch size and GPU count.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gradalign_trainer.grpo.generation import RolloutBatch
from gradalign_trainer.grpo.sharing import shared_logits

__all__ = ["advantages", "completion_distributions", "completion_logprobs", "problem_losses"]


def advantages(rewards: Tensor, *, normalize: bool = False) -> Tensor:
    """Rewards less their group's mean, optionally over the group's standard deviation.

    Args:
        rewards: float [P, G].
        normalize: divide by the standard deviation (of the group, biased) plus 1e-6.

    Returns:
        float [P, G]; a group of equal rewards gets zeros and so gives no signal.
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    # Equal rewards such as 0.1 can leave rounding dust behind, which normalising would blow up to a signal.
    centred = torch.where((rewards == rewards[:, :1]).all(dim=1, keepdim=True), torch.zeros_like(centred), centred)
    if normalize:
        centred = centred / (centred.square().mean(dim=1, keepdim=True).sqrt() + 1e-6)
    return centred


def completion_distributions(model: PreTrainedModel, rollouts: RolloutBatch) -> Tensor:
    """Log-probabilities of every token at every place of the completions, at their temperature; float32 [P*G, Tc, V]."""
    logits = shared_logits(model, rollouts) if rollouts.share_prompts else _logits(model, rollouts)
    return torch.log_softmax(logits.float() / (rollouts.temperature or 1.0), dim=-1)


def _logits(model: PreTrainedModel, rollouts: RolloutBatch) -> Tensor:
    size = rollouts.group_size
    prompt_ids = rollouts.prompt_ids.repeat_interleave(size, dim=0)
    ids = torch.cat([prompt_ids, rollouts.completion_ids], dim=1)
    mask = torch.cat([rollouts.prompt_mask.repeat_interleave(size, dim=0), rollouts.completion_mask], dim=1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    output = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
    logits: Tensor = output.logits[:, prompt_ids.shape[1] - 1 : -1]
    return logits


def completion_logprobs(model: PreTrainedModel, rollouts: RolloutBatch) -> Tensor:
    """Log-probabilities of the sampled tokens at their temperature, float32 [P*G, Tc]; 0 on padding."""
    distributions = completion_distributions(model, rollouts)
    return distributions.gather(-1, rollouts.completion_ids[..., None])[..., 0] * rollouts.completion_mask


def problem_losses(model: PreTrainedModel, rollouts: RolloutBatch, advantage: Tensor) -> Tensor:
    """The loss of every problem, float32 [P], differentiable in the model's parameters.

    Args:
        model: the policy that sampled the rollouts.
        rollouts: of P problems, G each.
        advantage: float [P, G].
    """
    weighted = completion_logprobs(model, rollouts).sum(1).view(-1, rollouts.group_size) * advantage
    return -weighted.sum(1) / rollouts.tokens

"""Features of problems: the mean of their prompts' token embeddings in the initial policy, in principal components.

They are known before a problem is tried, cost no forward, and stay as they are while the policy moves. The last layer's
state at the last prompt token says what comes next rather than what is asked: see docs/experiments.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gradalign.errors import GradAlignError
from gradalign_trainer.grpo.generation import encode_prompts
from gradalign_trainer.problems import Problem

__all__ = ["PoolFeatures", "principal_components", "prompt_means"]


class PoolFeatures:
    """Features of the problems of a pool.

    Args:
        problems: the pool.
        table: float32 [problems, F], on the CPU.
    """

    def __init__(self, problems: Sequence[Problem], table: Tensor) -> None:
        self._row = {problem.problem_id: row for row, problem in enumerate(problems)}
        self._table = table
        self._pool = hashlib.sha256("\n".join(self._row).encode()).hexdigest()

    @classmethod
    def of(
        cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem], components: int
    ) -> PoolFeatures:
        """Of the prompts as a policy embeds them; the same policy and pool give the same bits."""
        means = prompt_means(model, tokenizer, [problem.prompt for problem in problems])
        return cls(problems, principal_components(means, components))

    @classmethod
    def from_state(cls, problems: Sequence[Problem], state: Mapping[str, object]) -> PoolFeatures:
        """What `state` gave; GradAlignError where that was of another pool."""
        table = state["table"]
        assert isinstance(table, Tensor)
        features = cls(problems, table)
        if state["pool"] != features._pool:
            raise GradAlignError(
                f"the checkpoint holds features of another pool than the {len(problems)} problems that are given; resume "
                "with the data that the run began with, in the same order."
            )
        return features

    def state(self) -> dict[str, object]:
        """As a checkpoint keeps it."""
        return {"pool": self._pool, "table": self._table}

    def rows(self, problem_ids: Sequence[str]) -> Tensor:
        """Features of some problems, float32 [n, F]."""
        return self._table[[self._row[problem_id] for problem_id in problem_ids]]


@torch.no_grad()
def prompt_means(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, prompts_per_batch: int = 256
) -> Tensor:
    """The mean over each prompt of its tokens' input embeddings, float32 [prompts, hidden] on the CPU."""
    embed = model.get_input_embeddings()
    means = []
    for start in range(0, len(prompts), prompts_per_batch):
        ids, mask = encode_prompts(tokenizer, prompts[start : start + prompts_per_batch], model.device)
        states = embed(ids).float() * mask[..., None]
        means.append((states.sum(1) / mask.sum(1, keepdim=True)).cpu())
    return torch.cat(means)


def principal_components(states: Tensor, count: int) -> Tensor:
    """The leading principal components, each scaled to a spread of 1; float32 [n, min(count, hidden, n)].

    Signs are fixed: the largest loading of each is positive.
    """
    centred = states.double() - states.double().mean(dim=0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(states))
    kept = min(count, len(states), states.shape[1])
    vectors = vectors.flip(1)[:, :kept]
    largest = vectors.abs().argmax(dim=0)
    vectors = vectors * vectors[largest, torch.arange(kept)].sign()
    spread = values.flip(0)[:kept].clamp(min=0).sqrt()
    scaled: Tensor = (centred @ vectors) / torch.where(spread > 1e-6 * spread[0] + 1e-12, spread, torch.inf)
    return scaled.float()

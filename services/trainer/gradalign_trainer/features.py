"""Features of problems: what the initial policy makes of their prompts, reduced by principal components.

They are known before a problem is tried, and stay as they are while the policy moves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gradalign.errors import GradAlignError
from gradalign_trainer.generation import encode_prompts
from gradalign_trainer.problems import Problem

__all__ = ["PoolFeatures", "principal_components", "prompt_states"]


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
        """Of the last prompt token as a policy sees it; the same policy and pool give the same bits."""
        states = prompt_states(model, tokenizer, [problem.prompt for problem in problems])
        return cls(problems, principal_components(states, components))

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
def prompt_states(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, prompts_per_batch: int = 256
) -> Tensor:
    """The last layer's state at the last token of each prompt, float32 [prompts, hidden] on the CPU."""
    model.eval()
    states = []
    for start in range(0, len(prompts), prompts_per_batch):
        ids, mask = encode_prompts(tokenizer, prompts[start : start + prompts_per_batch], model.device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        output = model.base_model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
        states.append(output.last_hidden_state[:, -1].float().cpu())
    return torch.cat(states)


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

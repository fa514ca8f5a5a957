"""Who samples the completions of a run: transformers, which holds the policy anyway, or an engine beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gradalign_trainer.grpo.generation import RolloutBatch, Sampling, generate

__all__ = ["Sampler", "TransformersSampler"]


class Sampler(Protocol):
    """Samples at the policy's present weights."""

    def generate(self, prompts: Sequence[str], sampling: Sampling, generator: torch.Generator) -> RolloutBatch:
        """Sample `sampling.group_size` completions of every prompt; `generator` decides them."""
        ...

    def weights_changed(self) -> None:
        """Know that the policy has other weights than at the call before."""
        ...


class TransformersSampler:
    """Samples from the policy itself; see `generation.generate`.

    Args:
        model: the policy.
        tokenizer: its own.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self._model, self._tokenizer = model, tokenizer

    def generate(self, prompts: Sequence[str], sampling: Sampling, generator: torch.Generator) -> RolloutBatch:
        """As `Sampler`'s; the rollouts bring the log-probs they were drawn with."""
        return generate(self._model, self._tokenizer, prompts, sampling, generator)

    def weights_changed(self) -> None:
        """Nothing: the weights are those of the policy."""

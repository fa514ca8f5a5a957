"""Rollouts: batched sampling from any Hugging Face causal LM, with a KV cache.

Every prompt is prefilled once; its cache is then repeated for the rollouts of its group. Where prompts are shared, what all
of a batch begin with is computed once for all of them. The gradient is taken at the very
weights that sampled, where the importance ratio is 1.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gradalign_trainer.grpo.models import bare
from gradalign_trainer.grpo.sharing import common_beginning

__all__ = [
    "RolloutBatch",
    "Sampling",
    "as_batch",
    "encode_prompts",
    "end_tokens",
    "generate",
    "join_batches",
    "pad_token",
]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample.

    Attributes:
        group_size: rollouts per prompt.
        max_new_tokens: longest completion, the end token included.
        temperature: divides the logits; 0 takes the likeliest token.
        prompts_per_batch: prompts generated at once; bounds memory.
        share_prompts: compute what the prompts of a batch begin with once; log-probs then share prompts too.
    """

    group_size: int
    max_new_tokens: int
    temperature: float = 1.0
    prompts_per_batch: int = 512
    share_prompts: bool = False


@dataclass(frozen=True, slots=True)
class RolloutBatch:
    """Rollouts of P prompts, G each; row p*G + i is rollout i of prompt p.

    Attributes:
        prompt_ids: int64 [P, Tp], padded on the left.
        prompt_mask: int64 [P, Tp], 1 on real tokens.
        completion_ids: int64 [P*G, Tc], padded on the right; the end token is part of the completion.
        completion_mask: int64 [P*G, Tc], 1 on sampled tokens.
        texts: P*G completions, decoded without special tokens.
        group_size: G.
        temperature: that the tokens were sampled at; the policy gradient is taken at the same.
        logprobs: float32 [P*G, Tc], log-probabilities of the sampled tokens at their temperature, 0 on padding; None where
            they are not known.
        share_prompts: whether a forward over the rollouts computes the prompt of a group once.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    completion_ids: Tensor
    completion_mask: Tensor
    texts: Sequence[str]
    group_size: int
    temperature: float
    logprobs: Tensor | None = None
    share_prompts: bool = False

    @property
    def tokens(self) -> Tensor:
        """Completion tokens per group, int64 [P]."""
        return self.completion_mask.sum(1).view(-1, self.group_size).sum(1)

    def groups(self, prompts: Sequence[int]) -> RolloutBatch:
        """The rollouts of some of the prompts, in the order given, trimmed to their longest."""
        picked = torch.as_tensor(prompts, device=self.prompt_ids.device)
        rows = (picked[:, None] * self.group_size + torch.arange(self.group_size, device=picked.device)).flatten()
        mask, prompt_mask = self.completion_mask[rows], self.prompt_mask[picked]
        longest = int(mask.sum(1).max())
        start = prompt_mask.shape[1] - int(prompt_mask.sum(1).max())
        return RolloutBatch(
            prompt_ids=self.prompt_ids[picked, start:],
            prompt_mask=prompt_mask[:, start:],
            completion_ids=self.completion_ids[rows, :longest],
            completion_mask=mask[:, :longest],
            logprobs=None if self.logprobs is None else self.logprobs[rows, :longest],
            texts=[self.texts[row] for row in rows.tolist()],
            group_size=self.group_size,
            temperature=self.temperature,
            share_prompts=self.share_prompts,
        )


def join_batches(parts: Sequence[RolloutBatch]) -> RolloutBatch:
    """Rollouts of one group size and one temperature, one part behind the other, padded to the longest."""
    prompt = max(part.prompt_ids.shape[1] for part in parts)
    completion = max(part.completion_ids.shape[1] for part in parts)

    def left(rows: Tensor) -> Tensor:
        return functional.pad(rows, (prompt - rows.shape[1], 0))

    def right(rows: Tensor) -> Tensor:
        return functional.pad(rows, (0, completion - rows.shape[1]))

    logprobs = [right(part.logprobs) for part in parts if part.logprobs is not None]
    return RolloutBatch(
        prompt_ids=torch.cat([left(part.prompt_ids) for part in parts]),
        prompt_mask=torch.cat([left(part.prompt_mask) for part in parts]),
        completion_ids=torch.cat([right(part.completion_ids) for part in parts]),
        completion_mask=torch.cat([right(part.completion_mask) for part in parts]),
        logprobs=None if len(logprobs) < len(parts) else torch.cat(logprobs),
        texts=[text for part in parts for text in part.texts],
        group_size=parts[0].group_size,
        temperature=parts[0].temperature,
        share_prompts=parts[0].share_prompts,
    )


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Token ids and mask of the prompts, int64 [P, Tp] each, padded on the left; the tokenizer needs no padding token."""
    rows = tokenizer(list(prompts), add_special_tokens=True)["input_ids"]
    longest, pad = max(map(len, rows)), tokenizer.pad_token_id or 0
    ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token ids that end a completion."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    configured = configured if isinstance(configured, list) else [configured]
    return sorted({int(token) for token in [*configured, tokenizer.eos_token_id] if token is not None})


def pad_token(tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> int:
    """What stands behind the end of a completion: the tokenizer's padding, or an end token where it has none."""
    return int(tokenizer.pad_token_id) if tokenizer.pad_token_id is not None else [*ends, 0][0]


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    sampling: Sampling,
    generator: torch.Generator,
) -> RolloutBatch:
    """Sample `group_size` completions of every prompt.

    Args:
        model: a causal LM; it is put in evaluation mode for the while.
        tokenizer: the model's.
        prompts: texts, at least one.
        sampling: how.
        generator: of random numbers, on the model's device.
    """
    was_training = model.training
    model.eval()
    prompt_ids, prompt_mask = encode_prompts(tokenizer, prompts, model.device)
    ends = end_tokens(model, tokenizer)
    pad = pad_token(tokenizer, ends)
    sampler = _Sampler(model, sampling, torch.tensor(ends, device=model.device), pad, generator)
    size = sampling.prompts_per_batch
    parts = [sampler.complete(*part) for part in zip(prompt_ids.split(size), prompt_mask.split(size), strict=True)]
    model.train(was_training)
    tokens, mask, logprobs = (torch.cat(column) for column in zip(*parts, strict=True))
    longest = int(mask.sum(1).max())
    completions = (tokens[:, :longest], mask[:, :longest])
    return as_batch(tokenizer, sampling, (prompt_ids, prompt_mask), completions, logprobs[:, :longest])


def as_batch(
    tokenizer: PreTrainedTokenizerBase,
    sampling: Sampling,
    prompts: tuple[Tensor, Tensor],
    completions: tuple[Tensor, Tensor],
    logprobs: Tensor | None,
) -> RolloutBatch:
    """The rollouts of token ids and masks, int64, of prompts and of completions, padded as `RolloutBatch` has them."""
    return RolloutBatch(
        prompt_ids=prompts[0],
        prompt_mask=prompts[1],
        completion_ids=completions[0],
        completion_mask=completions[1],
        logprobs=logprobs,
        texts=tokenizer.batch_decode(completions[0], skip_special_tokens=True),
        group_size=sampling.group_size,
        temperature=sampling.temperature,
        share_prompts=sampling.share_prompts,
    )


@dataclass(frozen=True, slots=True)
class _Sampler:
    model: PreTrainedModel
    sampling: Sampling
    ends: Tensor
    pad: int
    generator: torch.Generator

    def complete(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens and mask, int64, and log-probs of a group for every prompt, [P*G, max_new_tokens] each."""
        steps = list(self._steps(ids, mask))
        tokens, live, logprobs = (torch.stack(column, dim=1) for column in zip(*steps, strict=True))
        spare = (0, self.sampling.max_new_tokens - len(steps))
        padded = functional.pad(tokens, spare, value=self.pad)
        return padded, functional.pad(live.long(), spare), functional.pad(logprobs, spare)

    def _steps(self, ids: Tensor, mask: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield (token, live, log-prob) [P*G] step by step: what was sampled, and whether it belongs to its completion."""
        group_size = self.sampling.group_size
        accepts = inspect.signature(bare(self.model).forward).parameters
        cache_name = "cache" if "cache" in accepts else "past_key_values"  # the name changed within transformers 5
        last_only = {"logits_to_keep": 1} if "logits_to_keep" in accepts else {}
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        told: dict[str, Any] = {"use_cache": True, **last_only}
        if self.sampling.share_prompts:
            ids, mask, positions, told[cache_name] = self._behind_beginning(ids, mask, cache_name, told)
        output = self.model(input_ids=ids, attention_mask=mask, position_ids=positions, **told)
        cache = getattr(output, cache_name)
        cache.batch_repeat_interleave(group_size)
        logits = output.logits[:, -1].repeat_interleave(group_size, dim=0)
        mask = mask.repeat_interleave(group_size, dim=0)
        position = positions[:, -1:].repeat_interleave(group_size, dim=0)
        live = torch.ones(len(mask), dtype=torch.bool, device=ids.device)
        for step in range(self.sampling.max_new_tokens):
            drawn, logprob = self._draw(logits)
            token = torch.where(live, drawn, self.pad)
            yield token, live, torch.where(live, logprob, 0.0)
            live = live & ~torch.isin(token, self.ends)
            if step + 1 == self.sampling.max_new_tokens or not live.any():
                return
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            position = position + 1
            fed: dict[str, Any] = {cache_name: cache}
            output = self.model(
                input_ids=token[:, None], attention_mask=mask, position_ids=position, use_cache=True, **fed
            )
            logits = output.logits[:, -1]

    def _behind_beginning(
        self, ids: Tensor, mask: Tensor, cache_name: str, told: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor, Any]:
        """What is left of the prompts behind what all begin with, its mask and positions, and the cache of the beginning.

        The mask has the columns of the cache too; where nothing is common there is no cache.
        """
        rows = [row[real.bool()].tolist() for row, real in zip(ids, mask, strict=True)]
        begun = common_beginning(rows) if len(rows) > 1 else 0
        if not begun:
            return ids, mask, (mask.cumsum(1) - 1).clamp(min=0), None
        beginning = torch.tensor([rows[0][:begun]], device=ids.device)
        cache = getattr(self.model(input_ids=beginning, **told), cache_name)
        cache.batch_repeat_interleave(len(rows))
        longest = max(map(len, rows)) - begun
        # A short prompt's beginning stands in these columns; it is in the cache already.
        places = mask.sum(1, keepdim=True) - longest + torch.arange(longest, device=ids.device)
        real = (places >= begun).long()
        positions = places.clamp(min=begun)
        return ids[:, -longest:], torch.cat([mask.new_ones(len(rows), begun), real], dim=1), positions, cache

    def _draw(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and their log-probs; the likeliest at temperature 0, with the log-prob at 1."""
        probabilities = torch.softmax(logits.float() / (self.sampling.temperature or 1.0), dim=-1)
        if self.sampling.temperature == 0:
            tokens = logits.argmax(-1, keepdim=True)
        else:
            tokens = torch.multinomial(probabilities, 1, generator=self.generator)
        return tokens[:, 0], probabilities.gather(-1, tokens)[:, 0].log()

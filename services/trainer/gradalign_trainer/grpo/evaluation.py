"""How good the policy is, exactly, where the answer is one string."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gradalign_trainer.grpo.generation import RolloutBatch, encode_prompts, end_tokens
from gradalign_trainer.grpo.loss import completion_distributions
from gradalign_trainer.problems import Problem

__all__ = ["exact_pass_rates"]


@torch.no_grad()
def exact_pass_rates(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    *,
    temperature: float = 1.0,
    problems_per_batch: int = 512,
    share_prompts: bool = False,
) -> Tensor:
    """The probability that a rollout is exactly the answer, by teacher forcing; float32 [problems] on the CPU.

    No sampling noise, and one forward instead of many rollouts. It applies where the answer is the whole completion. With
    `share_prompts` no logits of prompts are made, which a large vocabulary has no memory for.
    """
    ends = end_tokens(model, tokenizer)
    rates = []
    for start in range(0, len(problems), problems_per_batch):
        part = problems[start : start + problems_per_batch]
        prompt_ids, prompt_mask = encode_prompts(tokenizer, [problem.prompt for problem in part], model.device)
        answers = [tokenizer(problem.answer, add_special_tokens=False)["input_ids"] for problem in part]
        lengths = torch.tensor([len(answer) for answer in answers], device=model.device)
        longest = int(lengths.max()) + 1  # the end token comes last
        ids = torch.tensor([answer + [ends[0]] * (longest - len(answer)) for answer in answers], device=model.device)
        places = torch.arange(longest, device=model.device)
        forced = RolloutBatch(
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            completion_ids=ids,
            completion_mask=(places <= lengths[:, None]).long(),
            texts=[problem.answer for problem in part],
            group_size=1,
            temperature=temperature,
            share_prompts=share_prompts,
        )
        logprobs = completion_distributions(model, forced)
        said = logprobs.gather(-1, ids[..., None])[..., 0] * (places < lengths[:, None])
        ended = logprobs[torch.arange(len(part)), lengths][:, ends].logsumexp(-1)  # whichever of them ends it
        rates.append((said.sum(1) + ended).exp().cpu())
    return torch.cat(rates)

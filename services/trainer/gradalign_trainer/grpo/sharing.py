"""Prompts computed once: a group's rollouts behind one prompt in one row, and what all prompts of a batch begin with.

A row of a batch is a group: the prompt, then its completions one behind the other, each of which sees the prompt and
itself. So a row's gradient is its problem's, as capture wants it, and a prompt counts once, not once a rollout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gradalign.errors import GradAlignError

if TYPE_CHECKING:
    from gradalign_trainer.grpo.generation import RolloutBatch

__all__ = ["check_sharing", "common_beginning", "shared_logits"]

MASKED = ("sdpa", "eager")


def check_sharing(model: PreTrainedModel) -> None:
    """Refuse a model that does not take a mask of its caller's over all of a row.

    Raises:
        GradAlignError: its attention is by other code than `MASKED`, or sees only a part of what came before.
    """
    by = getattr(model.config, "_attn_implementation", None)
    kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
    if by in MASKED and kinds == {"full_attention"}:
        return
    raise GradAlignError(
        f"share_prompts = true needs full attention by {' or '.join(MASKED)}; this {type(model).__name__} has layers of "
        f"{', '.join(sorted(kinds))} by {by!r}. Leave share_prompts out."
    )


def common_beginning(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with, at least one being left to each."""
    most = min(map(len, rows)) - 1
    first = rows[0]
    return next((place for place in range(most) if any(row[place] != first[place] for row in rows)), most)


def shared_logits(model: PreTrainedModel, rollouts: RolloutBatch) -> Tensor:
    """Logits before each token of the completions, [P*G, Tc, V], from one row a group; differentiable."""
    size, (problems, prompt) = rollouts.group_size, rollouts.prompt_ids.shape
    longest = rollouts.completion_ids.shape[1]
    ids = torch.cat([rollouts.prompt_ids, rollouts.completion_ids.view(problems, -1)], dim=1)
    kept = torch.arange(prompt - 1, ids.shape[1], device=ids.device)
    output = model(
        input_ids=ids,
        attention_mask=_tree_mask(rollouts, model.dtype),
        position_ids=_positions(rollouts),
        use_cache=False,
        logits_to_keep=kept,
    )
    first = output.logits[:, :1, None].expand(-1, size, -1, -1)
    rest = output.logits[:, 1:].unflatten(1, (size, longest))[:, :, :-1]
    return torch.cat([first, rest], dim=2).flatten(0, 1)


def _positions(rollouts: RolloutBatch) -> Tensor:
    """Int64 [P, Tp + G*Tc]: each completion goes on where the prompt ends."""
    size, longest = rollouts.group_size, rollouts.completion_ids.shape[1]
    within = (rollouts.prompt_mask.cumsum(1) - 1).clamp(min=0)
    behind = torch.arange(1, longest + 1, device=within.device).repeat(size)
    return torch.cat([within, within[:, -1:] + behind], dim=1)


def _tree_mask(rollouts: RolloutBatch, dtype: torch.dtype) -> Tensor:
    """Additive [P, 1, T, T]: a token sees the prompt's real tokens and its own completion up to itself.

    Padding sees itself, since a row of a softmax must see something.
    """
    size, prompt = rollouts.group_size, rollouts.prompt_ids.shape[1]
    mask, longest = rollouts.prompt_mask, rollouts.completion_ids.shape[1]
    branch = torch.arange(size, device=mask.device).repeat_interleave(longest)
    owner = torch.cat([torch.full((prompt,), -1, device=mask.device), branch])
    seen = (owner[:, None] == owner) | (owner == -1)
    seen = seen & torch.ones_like(seen).tril()
    real = torch.cat([mask.bool(), torch.ones(len(mask), size * longest, dtype=torch.bool, device=mask.device)], dim=1)
    allowed = (seen & real[:, None]) | torch.eye(len(owner), dtype=torch.bool, device=mask.device)
    unseen = torch.zeros(allowed.shape, dtype=dtype, device=mask.device)
    return unseen.masked_fill(~allowed, torch.finfo(dtype).min)[:, None]

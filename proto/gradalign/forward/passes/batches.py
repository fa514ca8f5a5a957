"""Micro-batches as a trainer gives them, and sums of what tokens have over rollouts or problems."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from gradalign.errors import DirectionError

__all__ = ["LogProbs", "MicroBatch", "checked", "checked_logprobs"]

LogProbs: TypeAlias = Callable[[Any], Tensor]
"""The trainer's own function: from a batch to the log-probs of its completion tokens, [B, T]."""


@dataclass(frozen=True)
class MicroBatch:
    """Rollouts that go through the model together.

    Attributes:
        batch: what `logprobs` takes.
        weights: float [B], A_i / Z of each rollout; or [B, T], of each token, for rows that pack several rollouts.
        mask: bool or 0/1 [B, T]: the completion tokens that count. Prompts, padding and what tools wrote do not.
        logprobs_at: float [B, T], what `logprobs(batch)` gives at the weights as they are, where the trainer has it.
        index: LongTensor [B] or [B, T], the rollout or the problem of each row or token; -1 for none. By default every
            row is a rollout of its own.
    """

    batch: Any
    weights: Tensor
    mask: Tensor
    logprobs_at: Tensor | None = None
    index: Tensor | None = None

    @property
    def shares(self) -> Tensor:
        """What each token's log-prob counts for, float64 [B, T]; 0 where it does not."""
        weights = self.weights.double()
        weights = weights[:, None] if weights.ndim == 1 else weights
        shares = torch.where(self.mask != 0, weights.to(self.mask.device), 0.0)
        return torch.where(self.owners()[0] >= 0, shares, 0.0)

    def owners(self) -> tuple[Tensor, int]:
        """The rollout or problem of each token, LongTensor [B, T], and their number."""
        index = torch.arange(len(self.mask)) if self.index is None else self.index
        owners = index.to(self.mask.device)
        count = len(owners) if self.index is None else int(owners.max()) + 1 if owners.numel() else 0
        return (owners[:, None].expand(self.mask.shape) if owners.ndim == 1 else owners), max(0, count)

    def sums(self, tokens: Tensor) -> Tensor:
        """Sums of a token's figures, float64 [B, T], over the rollouts or problems: [B], or [largest index + 1]."""
        owners, count = self.owners()
        kept = (owners >= 0).to(tokens.device)
        return tokens.new_zeros(count).index_add_(0, owners.to(tokens.device)[kept], tokens[kept])


def checked(given: MicroBatch) -> MicroBatch:
    """The micro-batch; DirectionError where shapes or values cannot be right."""
    mask, weights, index = given.mask, given.weights, given.index
    if mask.ndim != 2:
        raise DirectionError(
            f"mask has shape {tuple(mask.shape)}; expected [B, T], 1 at the completion tokens that count."
        )
    if tuple(weights.shape) not in ((len(mask),), tuple(mask.shape)):
        raise DirectionError(
            f"weights has shape {tuple(weights.shape)}; expected [{len(mask)}], one A_i / Z a row, or {list(mask.shape)}, "
            "one a token, as the mask has it."
        )
    if not bool(torch.isfinite(weights).all()):
        raise DirectionError("weights holds NaN or inf; an advantage over a standard deviation of 0 is a usual cause.")
    if mask.is_floating_point() and not bool(((mask == 0) | (mask == 1)).all()):
        raise DirectionError("mask holds values other than 0 and 1; weigh tokens by weights of shape [B, T] instead.")
    if given.logprobs_at is not None and given.logprobs_at.shape != mask.shape:
        raise DirectionError(
            f"logprobs_at has shape {tuple(given.logprobs_at.shape)} and mask {tuple(mask.shape)}; expected the same [B, T]."
        )
    if index is not None and (index.is_floating_point() or tuple(index.shape) not in ((len(mask),), tuple(mask.shape))):
        raise DirectionError(
            f"index has shape {tuple(index.shape)} and dtype {index.dtype}; expected integers [{len(mask)}] or "
            f"{list(mask.shape)}: the rollout or problem of each row or token, -1 for none."
        )
    return given


def checked_logprobs(found: Any, given: MicroBatch, what: str = "logprobs(batch)") -> Tensor:
    """Log-probs in float32 or wider, 0 where no token counts; DirectionError for another shape or NaN."""
    if not isinstance(found, Tensor) or found.shape != given.mask.shape:
        kind = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise DirectionError(
            f"{what} gave {kind} and mask has shape {tuple(given.mask.shape)}; expected log-probs [B, T] of the tokens that "
            "the mask is over."
        )
    wide = found if found.dtype == torch.float64 else found.float()
    wide = torch.where(given.mask.to(found.device) != 0, wide, 0.0)
    if not bool(torch.isfinite(wide).all()):
        at = (~torch.isfinite(wide)).nonzero()[0].tolist()
        raise DirectionError(
            f"{what} gave {float(wide[tuple(at)])} at row {at[0]}, token {at[1]}, which the mask counts; leave that token "
            "out of the mask, or the row out of the batch."
        )
    return wide

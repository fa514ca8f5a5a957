"""The policy gradient of rows of tokens, left in `.grad`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gradalign_trainer.generation import RolloutBatch
from gradalign_trainer.grpo import completion_logprobs
from gradalign_trainer.rank.rule import Piece, Row

__all__ = ["add_gradient"]


def add_gradient(model: PreTrainedModel, pieces: Iterable[Piece]) -> None:
    """Add the gradient of the sum of the pieces' losses to `.grad`, one forward and backward a piece."""
    for piece in pieces:
        rows = [row for row in piece.rows if row.advantage != 0 and row.tokens]
        if rows:
            _loss(model, rows, piece.scale).backward()


def _loss(model: PreTrainedModel, rows: Sequence[Row], scale: float) -> Tensor:
    device = model.device
    counted = _right([row.counted for row in rows], device).float()
    batch = RolloutBatch(
        prompt_ids=_left([row.ids[: row.start] for row in rows], device),
        prompt_mask=_left([(1,) * row.start for row in rows], device),
        completion_ids=_right([row.ids[row.start :] for row in rows], device),
        completion_mask=_right([(1,) * len(row.counted) for row in rows], device),
        texts=[],
        group_size=1,
        temperature=1.0,
    )
    advantage = torch.tensor([row.advantage for row in rows], dtype=torch.float32, device=device)
    return -scale * ((completion_logprobs(model, batch) * counted).sum(1) * advantage).sum()


def _left(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows], device=device)


def _right(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[int(value) for value in row] + [0] * (longest - len(row)) for row in rows], device=device)

"""Which problem each row of a batch is of, as the caller says it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradalign.errors import SketchError

__all__ = ["checked_index", "problem_count"]


def problem_count(index: Tensor, problems: int | None) -> int:
    """The number of problems: as given, or the largest index + 1."""
    return int(index.max()) + 1 if problems is None else problems


def checked_index(index: Any, problems: int | None) -> Tensor:
    """The index; SketchError unless it is a LongTensor [B] or [B, T] from -1 to problems - 1."""
    if not isinstance(index, Tensor) or index.dtype != torch.long or index.ndim not in (1, 2) or not index.numel():
        given = f"{index.dtype} {tuple(index.shape)}" if isinstance(index, Tensor) else type(index).__name__
        raise SketchError(
            f"problem_index is {given}; expected a LongTensor [B] (problem of each row of the batch) or [B, T] (of each "
            "token)."
        )
    low, high = int(index.min()), int(index.max())
    if low < -1 or (high < 0 and problems is None) or (problems is not None and high >= problems):
        raise SketchError(
            f"problem_index runs from {low} to {high}; expected 0 to problems - 1"
            f"{'' if problems is None else f' = {problems - 1}'}, or -1 for rows of no problem."
        )
    return index

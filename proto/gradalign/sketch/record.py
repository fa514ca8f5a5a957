"""From the factors of one use of a parameter to the sketches of all problems."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gradalign.sketch.accumulate import Accumulator
from gradalign.sketch.derived import Derived
from gradalign.sketch.rows import Groups

__all__ = ["Block", "UseRecorder"]


class Block(Protocol):
    """What a use needs of its capture block."""

    keep_grad: bool

    def accumulator(self, device: torch.device) -> Accumulator:
        """The sketches on one device; raises SketchError when the block has ended."""


@dataclass(frozen=True)
class UseRecorder:
    """Records one use of a parameter, or of a value derived from it; see `gradalign.sketch.uses.Recorder`.

    Attributes:
        block: the capture.
        derived: how the value was made of the parameter.
        parameter: the parameter.
        shape: of the value.
        dtype: of the value.
    """

    block: Block
    derived: Derived
    parameter: Tensor
    shape: tuple[int, ...]
    dtype: torch.dtype

    def outer(self, left: Tensor, right: Tensor, groups: Groups) -> Tensor | None:
        """Sums of outer products of rows: left [n, R], right [n, C]."""
        target, made = self.block.accumulator(left.device), self.derived
        keep = self.block.keep_grad
        if made.plain:
            if made.turned:
                left, right = right, left
            whole = target.outer(made.name, left, right, groups, row=made.row, total=keep)
            return None if whole is None else self._whole(whole.t() if made.turned else whole)
        left, right = groups.sort(left), groups.sort(right)
        for problem, (start, stop) in enumerate(zip(groups.bounds, groups.bounds[1:], strict=False)):
            gradient = (left[start:stop].t() @ right[start:stop]).reshape(1, *self.shape)
            target.dense(made.name, made.pull_back(self.parameter, gradient), first=problem)
        return self._whole(left.t() @ right) if keep else None

    def dense(self, gradients: Tensor, whole: Callable[[], Tensor]) -> Tensor | None:
        """Gradients as they are, [problems, *shape]."""
        target, made = self.block.accumulator(gradients.device), self.derived
        if made.plain and not made.turned:
            target.dense(made.name, gradients, row=made.row)
        else:
            target.dense(made.name, made.pull_back(self.parameter, gradients))
        return self._whole(whole()) if self.block.keep_grad else None

    def lookup(self, index: Tensor, rows: Tensor, groups: Groups, padding: int) -> Tensor | None:
        """Rows of a matrix: `rows[i]` [n, C] belongs to row `index[i]`."""
        target, made = self.block.accumulator(rows.device), self.derived
        if padding >= 0 and bool((index == padding).any()):
            rows = rows.masked_fill((index == padding).unsqueeze(1), 0)
        if made.plain and not made.turned:
            target.rows(made.name, index + made.row, rows, groups)
        else:
            for problem in range(len(groups.bounds) - 1):
                mine = (groups.ids == problem).nonzero().squeeze(1)
                gradient = rows.new_zeros(self.shape).index_add_(0, index[mine], rows[mine])
                target.dense(made.name, made.pull_back(self.parameter, gradient.unsqueeze(0)), first=problem)
        if not self.block.keep_grad:
            return None
        return self._whole(torch.ops.aten.embedding_dense_backward(rows, index, self.shape[0], padding, False))

    def _whole(self, gradient: Tensor) -> Tensor:
        return gradient.to(self.dtype).reshape(self.shape)

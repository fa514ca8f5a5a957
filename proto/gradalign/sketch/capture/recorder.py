"""From the factors of one use of a parameter to the sketches of all problems."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from gradalign.sketch.capture.accumulate import Accumulator
from gradalign.sketch.capture.exact import Exact, Piece, Place
from gradalign.sketch.capture.operators.derived import Derived
from gradalign.sketch.capture.rows.problems import Groups
from gradalign.wire.countsketch import matrix_shape

__all__ = ["Block", "UseRecorder"]


class Block(Protocol):
    """What a use needs of its capture block."""

    keep_grad: bool
    exact: Exact | None

    def accumulator(self, device: torch.device) -> Accumulator:
        """The sketches on one device; raises SketchError when the block has ended."""


@dataclass(frozen=True)
class UseRecorder:
    """Records one use of a parameter, or of a value derived from it; see `operators.functions.Recorder`.

    Attributes:
        block: the capture.
        derived: how the value was made of the parameter.
        parameter: the parameter.
        shape: of the value.
        dtype: of the value.
        beside: the recorders of the other parameters that the value was made of.
    """

    block: Block
    derived: Derived
    parameter: Tensor
    shape: tuple[int, ...]
    dtype: torch.dtype
    beside: tuple[UseRecorder, ...] = ()

    @property
    def place(self) -> Place:
        """Where in the parameter's matrix view the gradient of this use lies."""
        rows, cols = matrix_shape(self.derived.shape)
        if not self.derived.direct:
            return self.derived.name, 0, rows
        return self.derived.name, self.derived.row, torch.Size(self.shape).numel() // max(1, cols)

    def outer(self, left: Tensor, right: Tensor, groups: Groups) -> Tensor | None:
        """Sums of outer products of rows: left [n, R], right [n, C]."""
        target, made, keep = self.block.accumulator(left.device), self.derived, self.block.keep_grad
        if not made.direct:
            self._outer_pulled_back(target, left, right, groups)
            return self._whole(left.t() @ right) if keep else None
        if made.turned:
            left, right = right, left
        if self._alone():
            whole = target.outer(self.place, left, right, groups, total=keep)
        else:
            self._hold(target, Piece(target.factor(groups.sort(left)), target.factor(groups.sort(right)), groups))
            whole = left.t() @ right if keep else None
        if whole is None:
            return None
        return self._whole(whole.t() if made.turned else whole)

    def dense(self, gradients: Tensor, whole: Callable[[], Tensor]) -> Tensor | None:
        """Gradients as they are, [problems, *shape]."""
        target, made = self.block.accumulator(gradients.device), self.derived
        if not made.direct or made.turned:
            self._pulled_back(target, gradients)
        else:
            self._dense(target, gradients)
        return self._whole(whole()) if self.block.keep_grad else None

    def lookup(self, index: Tensor, rows: Tensor, groups: Groups, padding: int) -> Tensor | None:
        """Rows of a matrix: `rows[i]` [n, C] belongs to row `index[i]`."""
        target, made = self.block.accumulator(rows.device), self.derived
        rows = _unpadded(index, rows, padding)
        if not made.direct or made.turned:
            self._lookup_pulled_back(target, index, rows, groups)
        else:
            self._rows(target, index, rows, groups)
        if not self.block.keep_grad:
            return None
        return self._whole(torch.ops.aten.embedding_dense_backward(rows, index, self.shape[0], padding, False))

    def _alone(self) -> bool:
        return self.block.exact is None or self.block.exact.alone(self.place)

    def _hold(self, target: Accumulator, piece: Piece) -> None:
        assert self.block.exact is not None
        pieces = self.block.exact.hold(self.place, piece)
        if pieces is not None:
            target.pieces(self.place, pieces)

    def _rows(self, target: Accumulator, index: Tensor, rows: Tensor, groups: Groups) -> None:
        if self._alone():
            target.rows(self.place, index, rows, groups)
        else:
            self._hold(target, Piece(groups.sort(index), target.factor(groups.sort(rows)), groups))

    def _dense(self, target: Accumulator, gradients: Tensor) -> None:
        if self._alone():
            target.dense(self.place, gradients)
        else:
            matrices = gradients.reshape(len(gradients), self.place[2], -1)
            self._hold(target, Piece(None, target.factor(matrices)))

    def _outer_pulled_back(self, target: Accumulator, left: Tensor, right: Tensor, groups: Groups) -> None:
        left, right = groups.sort(left), groups.sort(right)
        gradients = [
            (left[start:stop].t() @ right[start:stop]).reshape(self.shape) for start, stop in pairwise(groups.bounds)
        ]
        self._pulled_back(target, torch.stack(gradients))

    def _lookup_pulled_back(self, target: Accumulator, index: Tensor, rows: Tensor, groups: Groups) -> None:
        gradients = rows.new_zeros(len(groups.bounds), *self.shape)
        gradients.index_put_((groups.ids, index), rows, accumulate=True)
        self._pulled_back(target, gradients[:-1])

    def _pulled_back(self, target: Accumulator, gradients: Tensor) -> None:
        """Gradients by the value, [problems, *shape]."""
        for other in self.beside:
            other._pulled_back(target, gradients)
        gradients, looked = self.derived.pull_back(self.parameter, gradients), self.derived.looked
        if looked is None:
            self._dense(target, gradients)
            return
        problems, each = gradients.shape[:2]
        index, rows = looked.index.repeat(problems), gradients.flatten(0, 1)
        self._rows(target, index, _unpadded(index, rows, looked.padding), Groups.even(problems, each, index.device))

    def _whole(self, gradient: Tensor) -> Tensor:
        return gradient.to(self.dtype).reshape(self.shape)


def _unpadded(index: Tensor, rows: Tensor, padding: int) -> Tensor:
    """The rows, zeros where they belong to the padding."""
    if padding < 0 or not bool((index == padding).any()):
        return rows
    return rows.masked_fill((index == padding).unsqueeze(1), 0)

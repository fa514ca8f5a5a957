"""Exact products with a validation gradient, and exact norms, of the gradients of all problems of a capture.

A product is a sum over parameters and their uses. A squared norm is a sum over parameters only: where one weight has
several uses (an embedding tied to the head) their gradients are added before squaring, so the factors of all but the last
use are held until it comes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from gradalign.errors import SketchError
from gradalign.sketch.capture.rows.problems import Groups
from gradalign.wire.countsketch import matrix_shape

__all__ = ["Exact", "Piece", "Place", "check_against"]

Place: TypeAlias = tuple[str, int, int]
"""A parameter's name, and the first row and number of rows of its matrix view that a use reaches."""


@dataclass(frozen=True)
class Piece:
    """One use's part of the gradients of all problems.

    Attributes:
        left: [n, R] factors, or LongTensor [n] of rows, or None.
        right: [n, C] factors or rows, grouped by problem; or gradients as they are, [problems, R, C].
        groups: of the n rows.
    """

    left: Tensor | None
    right: Tensor
    groups: Groups | None = None

    def add_to(self, gradient: Tensor, problem: int) -> None:
        """Add one problem's part to its gradient, [R, C]."""
        if self.left is None or self.groups is None:
            gradient += self.right[problem]
            return
        rows = slice(self.groups.bounds[problem], self.groups.bounds[problem + 1])
        left, right = self.left[rows], self.right[rows].to(gradient.dtype)
        if left.ndim == 1:
            gradient.index_add_(0, left, right)
        else:
            gradient.addmm_(left.t().to(gradient.dtype), right)


def check_against(against: Mapping[str, Tensor] | None, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise SketchError unless a validation gradient is one of these parameters."""
    for name, gradient in (against or {}).items():
        if shapes.get(name) != tuple(gradient.shape):
            raise SketchError(
                f"against[{name!r}] has shape {tuple(gradient.shape)}; the sketched parameter has "
                f"{shapes.get(name, 'no such name')}. Take sketcher.gradients() after the validation backward."
            )


class Exact:
    """The validation gradient, and which uses of a weight have come in.

    Args:
        against: the validation gradient by canonical parameter name; a missing name stands for zeros.
        shapes: of all sketched parameters.
    """

    def __init__(self, against: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
        check_against(against, shapes)
        self.norm = math.sqrt(sum(float(g.double().square().sum()) for g in against.values()))
        if not self.norm > 0 or not math.isfinite(self.norm):
            raise SketchError(
                f"the gradient to take products with has norm {self.norm}; run the validation backward first, then take "
                "sketcher.gradients()."
            )
        self._against = against
        self._shapes = shapes
        self._expected: Counter[Place] = Counter()
        self._pieces: dict[Place, list[Piece]] = {}
        self._done: set[Place] = set()

    def partner(self, place: Place, like: Tensor) -> Tensor:
        """The validation gradient at a place, [rows, C], in the dtype and on the device of `like`."""
        name, row, count = place
        rows, cols = matrix_shape(self._shapes[name])
        given = self._against.get(name)
        if given is None:
            return like.new_zeros(count, cols)
        return given.detach().reshape(rows, cols)[row : row + count].to(like.device, like.dtype).contiguous()

    def expect(self, place: Place) -> None:
        """Count a use that a forward makes."""
        name, row, count = place
        for other in self._expected:
            if other[0] == name and other != place and row < other[1] + other[2] and other[1] < row + count:
                raise SketchError(
                    f"{name} is used as a whole and in part, or in parts that overlap; capture it without `against`, or "
                    "take its norm from from_grads()."
                )
        self._expected[place] += 1

    def alone(self, place: Place) -> bool:
        """Whether the use that comes in is the only one of its place."""
        if place in self._done:
            raise SketchError(
                f"a second backward reached {place[0]}; exact norms need the whole gradient of a problem in one backward. "
                "Put all its rows in one batch, or capture without `against`."
            )
        if self._expected[place] <= 1:
            self._done.add(place)
            return True
        return False

    def hold(self, place: Place, piece: Piece) -> list[Piece] | None:
        """Keep one of several uses; all of them once the last has come."""
        held = self._pieces.setdefault(place, [])
        held.append(piece)
        if len(held) < self._expected[place]:
            return None
        self._done.add(place)
        return self._pieces.pop(place)

    def rest(self) -> dict[Place, list[Piece]]:
        """What is still held because some uses had no part in the loss."""
        rest, self._pieces = self._pieces, {}
        self._done.update(rest)
        return rest

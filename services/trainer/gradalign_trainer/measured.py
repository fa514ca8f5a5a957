"""Gradients of problems on their way to the scorer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

__all__ = ["Measured"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Measured:
    """Gradients of problems, as the scorer takes them; row i everywhere is problem i.

    Attributes:
        problem_ids: distinct ids, P of them.
        sketches: float32 [P, dim], on the CPU.
        tokens: completion tokens of the group.
        rollouts: group sizes.
        pass_rates: mean rewards, clipped to [0, 1].
        norms: exact gradient norms; None where they were not taken.
        dots: exact products with the unit validation gradient; None where they were not taken.
        dots_version: the validation version of `dots`.
        features: [P, F], what is known of each problem before it is tried; None where nothing is.
    """

    problem_ids: Sequence[str]
    sketches: Tensor
    tokens: Sequence[int]
    rollouts: Sequence[int]
    pass_rates: Sequence[float]
    norms: Sequence[float] | None = None
    dots: Sequence[float] | None = None
    dots_version: int | None = None
    features: Tensor | None = None

    def distinct(self) -> Measured:
        """The same with only the first row of every problem."""
        first = list({problem_id: row for row, problem_id in reversed(list(enumerate(self.problem_ids)))}.values())
        first.sort()

        def rows(column: Sequence[T]) -> list[T]:
            return [column[row] for row in first]

        return Measured(
            problem_ids=rows(self.problem_ids),
            sketches=self.sketches[first],
            tokens=rows(self.tokens),
            rollouts=rows(self.rollouts),
            pass_rates=rows(self.pass_rates),
            norms=None if self.norms is None else rows(self.norms),
            dots=None if self.dots is None else rows(self.dots),
            dots_version=self.dots_version,
            features=None if self.features is None else self.features[first],
        )

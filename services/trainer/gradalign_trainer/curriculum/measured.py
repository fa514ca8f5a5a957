"""Gradients of problems on their way to the scorer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from torch import Tensor

from gradalign import Client
from gradalign.wire.replies import Ranking, RefreshReply

__all__ = ["Gradients", "Measured", "first_rows"]

T = TypeVar("T")


class Gradients(Protocol):
    """What the scorer gets of problems: `Measured` sketches, or `MeasuredProducts`."""

    @property
    def problem_ids(self) -> Sequence[str]:
        """Distinct ids."""

    @property
    def signal(self) -> bool:
        """Whether any gradient is not zero."""

    def refresh(self, client: Client, **settings: Any) -> RefreshReply:
        """Send them as those of validation problems."""

    def score(self, client: Client, **settings: Any) -> Ranking:
        """Send them as those of candidates."""

    def distinct(self) -> Gradients:
        """The same with only the first row of every problem."""

    def with_features(self, features: Tensor) -> Gradients:
        """The same with features of the problems, [P, F]."""


def first_rows(problem_ids: Sequence[str]) -> list[int]:
    """Where each id comes first, in order."""
    return sorted({problem_id: row for row, problem_id in reversed(list(enumerate(problem_ids)))}.values())


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

    @property
    def signal(self) -> bool:
        """Whether any gradient is not zero."""
        return bool(self.sketches.any())

    def refresh(self, client: Client, **settings: Any) -> RefreshReply:
        """Send them as the gradients of validation problems; settings and errors as of `Client.refresh_validation`."""
        return client.refresh_validation(
            self.problem_ids, self.sketches, tokens=self.tokens, rollouts=self.rollouts, **settings
        )

    def score(self, client: Client, **settings: Any) -> Ranking:
        """Send them as the gradients of candidates; settings and errors as of `Client.score`."""
        return client.score(
            self.problem_ids,
            self.sketches,
            norms=self.norms,
            dots=self.dots,
            dots_version=self.dots_version,
            tokens=self.tokens,
            rollouts=self.rollouts,
            pass_rates=self.pass_rates,
            features=self.features,
            **settings,
        )

    def distinct(self) -> Measured:
        """The same with only the first row of every problem."""
        first = first_rows(self.problem_ids)

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

    def with_features(self, features: Tensor) -> Measured:
        """The same with features of the problems, [P, F]."""
        return replace(self, features=features)

"""What the policy asks of whoever measures gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from gradalign.wire.projection import Projection
from gradalign_trainer.curriculum.measured import Gradients
from gradalign_trainer.grpo.rollouts import ScoredRollouts

__all__ = ["Advance", "FreshGradient", "Meter", "no_advance", "validation_shares"]

Advance: TypeAlias = Callable[[int], None]
"""Told how many problems more are done."""


def no_advance(problems: int) -> None:
    """Tell nobody."""


def validation_shares(scored: ScoredRollouts, aggregation: str) -> Tensor:
    """What each validation problem's gradient counts for in their sum, float32 [P]: its tokens if `pooled`, 1 if `mean`."""
    tokens = scored.rollouts.tokens.float()
    return tokens if aggregation == "pooled" else torch.ones_like(tokens)


@dataclass(frozen=True, slots=True)
class FreshGradient:
    """The full gradient of validation problems at the present weights.

    Attributes:
        gradient: sum over the problems of share times gradient, by canonical parameter name.
        total: sum of the shares of all problems.
        signal_total: sum of the shares of those with a signal.
        groups: how many have a signal.
    """

    gradient: Mapping[str, Tensor]
    total: float
    signal_total: float
    groups: int


class Meter(Protocol):
    """Measures gradients of one policy, at the weights as they are.

    Attributes:
        fresh: the full gradient of the validation problems that were measured last; None where nothing needs it.
    """

    fresh: FreshGradient | None

    @property
    def projection(self) -> Projection | None:
        """Of its sketches; None where it gives products."""

    @property
    def kept_version(self) -> int | None:
        """The scorer's version of the validation gradient that is kept here; None where none is."""

    def candidates(self, scored: ScoredRollouts, advance: Advance = no_advance) -> Gradients:
        """The gradients of candidates."""

    def validation(self, scored: ScoredRollouts, advance: Advance = no_advance) -> Gradients:
        """The gradients of validation problems."""

    def keep(self, version: int, decay: float | None) -> None:
        """Note that what `validation` measured is the scorer's validation version now.

        Args:
            version: the scorer's.
            decay: share of the gradient kept before that stays in it, as the scorer was told.
        """

    def with_update(self, scored: ScoredRollouts) -> Gradients | None:
        """The gradients of problems, and in `.grad` their mean; None where that takes a pass of its own."""

    def state(self) -> Any:
        """Of the validation gradient, for a checkpoint; None where nothing is kept."""

    def load(self, state: Any) -> None:
        """Go on from what `state` gave."""

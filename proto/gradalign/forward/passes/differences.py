"""Slopes of log-probs along a direction by differences: the weights move, the log-prob function runs, they move back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from torch import Tensor

from gradalign.forward.passes.replay import Passes, random_base
from gradalign.forward.passes.step import Step

__all__ = ["Move", "central", "halves", "one_sided"]

Move: TypeAlias = Callable[[float], None]
"""Puts the weights at theta + that distance along the unit vector of the direction."""


def one_sided(passes: Passes, move: Move, step: Step, base: Sequence[Tensor]) -> list[Tensor]:
    """Slopes from one pass beside the log-probs at theta, float64 [B, T] a micro-batch."""
    while True:
        size = step.size
        move(size)
        changes = _minus(passes(), base)
        if passes.drew:
            raise random_base()
        if step.fits(changes, passes.given):
            return [change / size for change in changes]


def central(passes: Passes, move: Move, step: Step) -> list[Tensor]:
    """Slopes from two passes, on both sides of theta; what is quadratic in h cancels."""
    while True:
        size = step.size
        move(size)
        after = passes()
        move(-size)
        changes = [change / 2 for change in _minus(after, passes())]
        if step.fits(changes, passes.given):
            return [change / size for change in changes]


def halves(passes: Passes, move: Move, step: Step, base: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Slopes ahead of theta and behind it; where they differ, the step is too long or the log-probs too coarse."""
    while True:
        size = step.size
        move(size)
        ahead = _minus(passes(), base)
        if step.fits(ahead, passes.given):
            break
    move(-size)
    behind = _minus(base, passes())
    return [change / size for change in ahead], [change / size for change in behind]


def _minus(one: Sequence[Tensor], other: Sequence[Tensor]) -> list[Tensor]:
    return [a.double() - b.double() for a, b in zip(one, other, strict=True)]

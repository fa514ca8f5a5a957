"""The distance h that the weights move, chosen by the change of log-probs that it makes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gradalign.errors import DirectionError
from gradalign.forward.parameters.ranks import sum_over
from gradalign.forward.passes.batches import MicroBatch

__all__ = ["Step"]

_TRIES = 8
_FACTOR = 2.0
_GROWTH = 100.0
_FINER, _FINEST = 8.0, 64.0


class Step:
    """Adapts h from batch to batch; a change of log-probs is proportional to it, so one new try is enough as a rule.

    Where a few sure tokens bend it is not: their change grows by powers of h. Between an h that changed too little and one
    that changed too much, the next is their geometric mean.

    Args:
        target: root mean square of the change of a counted token's log-prob, in nats.
        first: the h to begin with.
        spread: the group or mesh whose ranks hold parts of the same weights, and so must move them alike; or None.

    Attributes:
        size: the next h.
        rms: the change that the last h made.
        fineness: what the target is divided by: a power of 8, at most 64. Where a few tokens change by far more than the
            others, log-probs curve over a step whose mean change is small.
    """

    def __init__(self, target: float, first: float, spread: Any, fineness: float = 1.0) -> None:
        self._coarsest, self.size, self.spread, self.fineness = target, first, spread, fineness
        self.rms = 0.0
        self._first = first
        self._begin()

    @property
    def target(self) -> float:
        """The root mean square that is aimed at now, in nats a token."""
        return self._coarsest / self.fineness

    def refine(self) -> bool:
        """Aim at a change of an eighth; False where the step is the finest already."""
        if self.fineness >= _FINEST:
            return False
        self.fineness *= _FINER
        return True

    def fits(self, changes: Sequence[Tensor], given: Sequence[MicroBatch]) -> bool:
        """Whether h made a change near the target; it is adapted for the next try or batch in any case.

        Args:
            changes: of log-probs, [B, T] a micro-batch.
            given: says which tokens count.

        Raises:
            DirectionError: no h brings the change near the target.
        """
        rms = self.rms_of(changes, given)
        if rms is None:
            return True
        self.rms = rms
        factor = self.target / self.rms if self.rms else _GROWTH
        fits = 1 / _FACTOR <= factor <= _FACTOR
        self._adapt(factor)
        self._tries += 1
        if fits:
            self._begin()
        elif self._tries >= _TRIES:
            tries = self._tries
            self.size = self._first
            self._begin()
            raise DirectionError(
                f"after {tries} tries the weights' step changes log-probs by {self.rms:.3g} a token where {self.target} was "
                "aimed at. Either the log-prob function does not run the weights that were moved (a copy for inference, a "
                "compiled or frozen graph), or logprobs_at is not what it gives at the weights as they are."
            )
        return fits

    def _begin(self) -> None:
        self._tries, self._short, self._long = 0, 0.0, math.inf

    def _adapt(self, factor: float) -> None:
        """The next h: by proportion, or between two that were tried where proportion leads out of these."""
        if factor > 1:
            self._short = max(self._short, self.size)
        else:
            self._long = min(self._long, self.size)
        bracketed = 0 < self._short < self._long < math.inf
        self.size *= min(max(factor, 1 / _GROWTH), _GROWTH)
        if bracketed and not self._short < self.size < self._long:
            self.size = math.sqrt(self._short * self._long)

    def rms_of(self, changes: Sequence[Tensor], given: Sequence[MicroBatch]) -> float | None:
        """The root mean square of changes of counted tokens, over all ranks that move alike; None where none counts."""
        figures = torch.zeros(2, dtype=torch.float64)
        for change, batch in zip(changes, given, strict=True):
            counted = batch.shares != 0
            kept = change[counted.to(change.device)].double()
            figures += torch.stack([kept.square().sum(), kept.new_tensor(float(kept.numel()))]).cpu()
        total, count = sum_over(figures, self.spread).tolist()
        return (total / count) ** 0.5 if count else None

"""Weights for training on every generated group, each by how well it is aligned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

__all__ = ["DISCOUNT", "PRIOR_VARIANCE", "Spread", "group_weights", "prior_weight", "quality_weights"]

Floats = npt.NDArray[np.float64]

PRIOR_VARIANCE = 0.5
"""Of the qualities of problems around what their features predict."""

SMALLEST_SPREAD = 0.05

DISCOUNT = 0.9
"""What a request leaves of the sums over earlier ones that the spread of a run is read of."""


@dataclass(frozen=True)
class Spread:
    """Discounted sums over the alignments of a run's groups with a signal: their mean and their scatter.

    Attributes:
        weight: of how many.
        total: sum.
        square: sum of squares.
    """

    weight: float = 0.0
    total: float = 0.0
    square: float = 0.0

    @classmethod
    def of(cls, values: npt.NDArray[np.floating]) -> Self:
        """Of the alignments of one request, [n]."""
        exact = np.asarray(values, dtype=np.float64)
        return cls(float(len(exact)), float(exact.sum()), float(np.square(exact).sum()))

    def behind(self, earlier: Self) -> Self:
        """These, behind those of earlier requests. No alignment ages what is known."""
        kept = DISCOUNT if self.weight else 1.0
        return type(self)(
            kept * earlier.weight + self.weight,
            kept * earlier.total + self.total,
            kept * earlier.square + self.square,
        )

    @property
    def mean(self) -> float:
        """Of the alignments; 0 without any."""
        return self.total / self.weight if self.weight else 0.0

    @property
    def deviation(self) -> float:
        """Their standard deviation; 0 without any."""
        return max(self.square / self.weight - self.mean**2, 0.0) ** 0.5 if self.weight else 0.0


def group_weights(
    alignments: Floats | None,
    signal: npt.NDArray[np.bool_],
    *,
    evidence_sum: Floats,
    evidence_weight: Floats,
    spread: float | None,
) -> Floats:
    """`clamp(0.25 + s/(2 sd), 0, 1)`, and 0 for a group without a signal; [n].

    `s` is the alignment averaged with what is remembered of the problem, `sd` the spread of alignments in the run (of
    this request where the run has none yet). A group of alignment 0 keeps a quarter of its gradient; one of a standard
    deviation and a half keeps all.

    Args:
        alignments: of this request, [n]; None where the run holds no validation gradient: every group counts in full.
        signal: False for a zero sketch, [n].
        evidence_sum: discounted sum of each problem's earlier alignments, [n].
        evidence_weight: discounted count of them, [n].
        spread: standard deviation of alignments in the run; None before the first scores.
    """
    if alignments is None:
        return signal.astype(np.float64)
    pooled = (alignments + evidence_sum) / (1 + evidence_weight)
    deviation = _deviation(alignments, signal, spread)
    # Without any spread the ratio is 0 or without bound; the sign decides.
    ratio = pooled / (2 * deviation) if deviation > 1e-12 else np.sign(pooled)
    return np.where(signal, np.clip(0.25 + ratio, 0.0, 1.0), 0.0)


def quality_weights(
    alignments: Floats,
    signal: npt.NDArray[np.bool_],
    *,
    strength: float,
    evidence_sum: Floats,
    evidence_weight: Floats,
    predicted: Floats,
    spread: float | None,
) -> Floats:
    """`clamp(0.25 + 0.75 q, 0, 1)`, and 0 for a group without a signal; [n].

    `q` is the expected quality of the problem: 1 for one like the validation problems, 0 for one that has nothing to do with
    them, -1 for one that leads the other way. An alignment is taken for strength x quality and noise, so the same
    alignment says less of a problem the less the validation gradient itself says, and what was learned of a problem while
    that said much is not washed out later.

    Args:
        alignments: of this request, [n].
        signal: False for a zero sketch, [n].
        strength: the alignment to expect at quality 1, now.
        evidence_sum: discounted sum of strength x alignment over each problem's earlier scores, [n].
        evidence_weight: discounted sum of their squared strengths, [n].
        predicted: quality that each problem's features predict, [n].
        spread: standard deviation of alignments in the run; None before the first scores.
    """
    pull = prior_weight(_deviation(alignments, signal, spread))
    sums = strength * alignments + evidence_sum + pull * predicted
    quality = sums / (strength**2 + evidence_weight + pull)
    return np.where(signal, np.clip(0.25 + 0.75 * quality, 0.0, 1.0), 0.0)


def _deviation(alignments: Floats, signal: npt.NDArray[np.bool_], spread: float | None) -> float:
    """The run's spread, or this request's where the run has none yet."""
    return spread or (float(np.std(alignments[signal])) if signal.any() else 0.0)


def prior_weight(spread: float) -> float:
    """How much a predicted quality counts, in squared strengths, where alignments have such a spread."""
    return max(spread, SMALLEST_SPREAD) ** 2 / PRIOR_VARIANCE

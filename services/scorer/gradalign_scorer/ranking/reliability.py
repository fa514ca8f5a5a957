"""How far a sketched ranking can be trusted, from the spread of the alignments themselves."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gradalign.wire.projection import MAX_DIM

__all__ = ["Reliability", "reliability"]

_LOW, _ENOUGH = 0.9, 0.95


@dataclass(frozen=True)
class Reliability:
    """An estimate and what to do about it.

    Attributes:
        value: expected Pearson correlation of sketched with exact alignments, in [0, 1].
        advised_dim: the smallest power of two at which it would reach 0.95, where `value` is below 0.9. None where it
            is not, where no allowed dim would do, and where the alignments spread no more than the sketch's own error.
    """

    value: float
    advised_dim: int | None = None


def reliability(alignments: npt.NDArray[np.float64], dim: int) -> Reliability | None:
    """`1/sqrt(1 + 1/(k sigma^2))` with `sigma^2 = var(alignments) - 1/k`.

    A sketched cosine is the exact one plus an error of variance about 1/k, so the observed variance is the sum of both.

    Args:
        alignments: sketched, of problems with a signal, [n].
        dim: number of buckets k.

    Returns:
        None for fewer than 3 alignments.
    """
    if len(alignments) < 3:
        return None
    sigma_square = float(np.var(alignments, ddof=1)) - 1 / dim
    if sigma_square <= 0:
        return Reliability(0.0)
    value = 1 / math.sqrt(1 + 1 / (dim * sigma_square))
    if value >= _LOW:
        return Reliability(value)
    needed = 1 / (sigma_square * (1 / _ENOUGH**2 - 1))
    if needed > MAX_DIM:
        return Reliability(value)
    return Reliability(value, 1 << math.ceil(math.log2(needed)))

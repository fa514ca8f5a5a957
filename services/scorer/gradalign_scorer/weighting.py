"""Weights for training on every generated group, each by how well it is aligned."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["group_weights"]

Floats = npt.NDArray[np.float64]


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
    deviation = spread or (float(np.std(alignments[signal])) if signal.any() else 0.0)
    # Without any spread the ratio is 0 or without bound; the sign decides.
    ratio = pooled / (2 * deviation) if deviation > 1e-12 else np.sign(pooled)
    return np.where(signal, np.clip(0.25 + ratio, 0.0, 1.0), 0.0)

"""Which rollouts contradict the rest of their batch: the leave-one-out filter of DTV (arXiv 2609.35072).

A rollout's value is the mean product of its gradient with those of the others, `1/(b - 1) sum_{i != j} <g_i, g_j>`. Those
below 0 are left out of the update. The product with itself, which is never negative, is not in it: a single long gradient
would vouch for itself.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["agreements"]


def agreements(sketches: Tensor) -> Tensor:
    """The leave-one-out values of b gradients, float64 [b]; 0 for a gradient of 0, and where it is alone.

    Args:
        sketches: of them, [b, dim]; products of sketches are those of gradients to an error of about 1/sqrt(dim) of the
            lengths.
    """
    rows = sketches.double()
    others = rows @ rows.sum(0) - rows.square().sum(1)
    return others / max(len(rows) - 1, 1)

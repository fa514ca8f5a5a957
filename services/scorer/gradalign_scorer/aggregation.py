"""The validation gradient: one unit vector out of the sketches of the trusted problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gradalign import InvalidValue
from gradalign_scorer.alignment import Products, SketchRows, products, weighted_sum

__all__ = ["CANCELLED", "ValidationGradient", "aggregate", "pooled_weights"]

Floats = npt.NDArray[np.float64]

# A sum this much shorter than its longest term is the rounding error of rows that cancel.
CANCELLED = 1e-6


@dataclass(frozen=True)
class ValidationGradient:
    """What a refresh computes.

    Attributes:
        vector: unit vector, float32 [dim], on the CPU.
        coherence: norm of the mean unit gradient: 1 when all problems agree, about 1/sqrt(n) when they share nothing.
        used: [n]; the finite rows with a signal that went into it.
        finite: [n]; False for a row with NaN or Inf.
    """

    vector: Tensor
    coherence: float
    used: npt.NDArray[np.bool_]
    finite: npt.NDArray[np.bool_]


def aggregate(
    rows: SketchRows, aggregation: str, tokens: Sequence[int] | None, device: torch.device
) -> ValidationGradient:
    """Combine sketches [n, dim] into the validation gradient.

    Args:
        rows: of the validation problems.
        aggregation: `pooled` (weighted by tokens; the reference's rule: the gradient of a token mean over all problems is
            this sum up to scale), `mean` or `normalized` (each row first scaled to norm 1).
        tokens: response tokens per problem; None makes `pooled` the same as `mean`.
        device: to compute on.

    Raises:
        InvalidValue: no row has a signal, or the rows cancel.
    """
    parts = products(rows, None, device)
    used = parts.signal
    if not used.any():
        raise InvalidValue(
            f"none of the {len(rows)} validation sketches has a signal ({int((~parts.finite).sum())} hold NaN or Inf, the "
            "others are zero, as when every rollout of a group gets the same reward). Take more rollouts per problem, "
            "or problems that the policy solves sometimes.",
            param="sketches",
        )
    unit_sum = weighted_sum(rows, _inverse(parts), device)
    if aggregation == "normalized":
        total = unit_sum
    else:
        total = weighted_sum(rows, pooled_weights(parts, tokens if aggregation == "pooled" else None), device)
    norm = float(torch.linalg.vector_norm(total.double()))
    if norm < CANCELLED:
        raise InvalidValue(
            "the validation sketches cancel to zero; use other validation problems, or more rollouts for each (with "
            "aggregation 'pooled', problems of 0 tokens count for nothing).",
            param="sketches",
        )
    coherence = float(torch.linalg.vector_norm(unit_sum.double())) / int(used.sum())
    return ValidationGradient((total.double() / norm).float(), min(coherence, 1.0), used, parts.finite)


def pooled_weights(parts: Products, tokens: Sequence[int] | None) -> Floats:
    """Weights of a pooled gradient, [n]: by tokens where given, else equal; 0 without a signal.

    They are scaled so that the longest weighted row has length 1, whatever the unit of the gradients.
    """
    weights = np.ones(len(parts.norms)) if tokens is None else np.array(tokens, dtype=np.float64)
    weights = np.where(parts.signal, weights, 0.0)
    longest = float((weights * parts.norms).max(initial=0.0))
    return weights / longest if longest > 0 else weights


def _inverse(parts: Products) -> Floats:
    return np.divide(1.0, parts.norms, out=np.zeros_like(parts.norms), where=parts.signal)

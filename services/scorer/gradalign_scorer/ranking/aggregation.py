"""The validation gradient: one unit vector out of the sketches of the trusted problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gradalign import InvalidValue
from gradalign_scorer.ranking.alignment import Products, SketchRows, products, weighted_sum

__all__ = ["CANCELLED", "ValidationGradient", "aggregate", "decayed", "pooled_weights"]

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
        length: of the mean gradient, weighted as the rows are, in the direction of `vector`; finite rows without a signal
            count as zero.
    """

    vector: Tensor
    coherence: float
    used: npt.NDArray[np.bool_]
    finite: npt.NDArray[np.bool_]
    length: float


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
    raw = np.ones(len(rows)) if tokens is None or aggregation != "pooled" else np.array(tokens, dtype=np.float64)
    longest = 1.0 if aggregation == "normalized" else float((raw * parts.norms)[used].max())
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
    length = norm * longest / float(raw[parts.finite].sum())
    return ValidationGradient((total.double() / norm).float(), min(coherence, 1.0), used, parts.finite, length)


def decayed(gradient: ValidationGradient, earlier: Tensor, length: float, decay: float) -> ValidationGradient:
    """A refresh with what it leaves of the gradient before: `decay` times that, and the mean gradient of the refresh.

    Args:
        gradient: of the refresh.
        earlier: unit vector, float32 [dim].
        length: of the gradient in that direction.
        decay: in [0, 1].

    Raises:
        InvalidValue: the two cancel.
    """
    total = decay * length * earlier.double() + gradient.length * gradient.vector.double()
    norm = float(torch.linalg.vector_norm(total))
    if norm <= CANCELLED * max(decay * length, gradient.length):
        raise InvalidValue(
            f"decay {decay:g} of the validation gradient before cancels the new one to zero; send decay 0 to begin anew.",
            param="decay",
        )
    return replace(gradient, vector=(total / norm).float(), length=norm)


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

"""The validation gradient: one unit vector out of the sketches of the trusted problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gradalign import InvalidValue, RefreshRequest
from gradalign_scorer.ranking.alignment import Products, SketchRows, products, weighted_sum
from gradalign_scorer.ranking.reliability import RolloutProducts, with_norms

__all__ = [
    "CANCELLED",
    "LEAST_QUOTIENT",
    "MOST_QUOTIENT",
    "ValidationGradient",
    "aggregate",
    "checked_products",
    "decayed",
    "pooled_weights",
]

Floats = npt.NDArray[np.float64]

# A sum this much shorter than its longest term is the rounding error of rows that cancel.
CANCELLED = 1e-6
LEAST_QUOTIENT, MOST_QUOTIENT = 0.5, 2.0
"""Between these, products are taken: a ranking does not depend on their unit. Outside of them they are of another loss."""
LEAST_FRESH = 0.1
"""Share of its length that a gradient is taken to owe to its own problems, where most of it is carried from earlier ones."""


@dataclass(frozen=True)
class ValidationGradient:
    """What a refresh computes.

    Attributes:
        vector: unit vector, float32 [dim], on the CPU; empty where the trainer holds it and sent products.
        coherence: norm of the mean unit gradient: 1 when all problems agree, about 1/sqrt(n) when they share nothing. None
            of products without exact norms.
        used: [n]; the finite rows with a signal that went into it.
        finite: [n]; False for a row with NaN or Inf.
        length: of the mean gradient, weighted as the rows are, in the direction of `vector`; finite rows without a signal
            count as zero.
        quotient: of the sum of the products and the length they should add up to; None of sketches.
    """

    vector: Tensor
    coherence: float | None
    used: npt.NDArray[np.bool_]
    finite: npt.NDArray[np.bool_]
    length: float
    quotient: float | None = None


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


def checked_products(request: RefreshRequest) -> ValidationGradient:
    """What products of the validation problems with their own gradient tell of it, once they add up to its length.

    Args:
        request: with `products` and `lengths`.

    Raises:
        InvalidValue: no problem has a signal; the products do not add up to the length, within a half and twice of it; or
            they are longer than the norms.
    """
    assert request.products is not None
    assert isinstance(request.lengths, float)
    rollouts = RolloutProducts.of(request.products)
    if not rollouts.signal.any():
        raise InvalidValue(
            f"none of the {len(rollouts.counts)} validation problems has a signal ({int((~rollouts.finite).sum())} hold "
            "NaN, Inf or more than 1e30, the products of the others are all zero, as when every rollout of a group gets the "
            "same reward). Take more rollouts per problem, or problems that the policy solves sometimes.",
            param="products",
        )
    total = float(rollouts.sums[rollouts.finite].sum())
    carried = request.carried or 0.0
    quotient = (total + carried) / request.lengths
    if not LEAST_QUOTIENT <= quotient <= MOST_QUOTIENT:
        raise InvalidValue(
            f"the products of the validation problems add up to {total:g}{_with_carried(request)} and lengths, the norm of "
            f"their gradient, is {request.lengths:g}; expected a quotient of 1, and at least within {LEAST_QUOTIENT:g} to "
            f"{MOST_QUOTIENT:g}, not {quotient:.3g}. Take the products of all validation problems with the weights that "
            "their loss had, at the parameters of its backward, with its gradient divided by its norm, and a step that "
            "changes log-probs by .02 to .1.",
            param="products",
        )
    return ValidationGradient(
        vector=torch.zeros(0),
        coherence=_coherence(request, rollouts),
        used=rollouts.signal,
        finite=rollouts.finite,
        length=max(request.lengths - carried, LEAST_FRESH * request.lengths) / int(rollouts.finite.sum()),
        quotient=quotient,
    )


def _with_carried(request: RefreshRequest) -> str:
    return "" if request.carried is None else f", with the carried part to {request.carried:g} more,"


def _coherence(request: RefreshRequest, rollouts: RolloutProducts) -> float | None:
    """The mean cosine of the problems with their gradient: the norm of the mean unit gradient, if their norms are equal."""
    if request.norms is None:
        return None
    kind = request.norms_kind or "exact"
    cosines = with_norms(rollouts, np.array(request.norms, dtype=np.float64), kind)
    if kind == "head":
        return None
    return float(np.clip(cosines[rollouts.signal].mean(), 0.0, 1.0))


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

"""What the compute thread does for one `POST /score` with products: from those of the rollouts to ranked columns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from gradalign import InvalidValue, ScoreRequest
from gradalign_scorer.ranking.reliability import (
    RolloutProducts,
    errors_over_norms,
    ranking_noise,
    rollout_weights,
    shrunken_alignments,
    with_norms,
)
from gradalign_scorer.ranking.scoring import Evidence, Scored, evidence_weights, ranked, rejected_rows, signal_chances
from gradalign_scorer.ranking.strategies import Candidates
from gradalign_scorer.ranking.weighting import Spread

__all__ = ["PRODUCTS_NOT_FINITE", "alignment_kind", "score_products"]

Floats = npt.NDArray[np.float64]

PRODUCTS_NOT_FINITE = (
    "its products hold NaN, Inf or more than 1e30; look for an overflow in its log-probs, before and after the step"
)
_MOST_EVIDENCE = 1e6
_FEWEST = 3


def alignment_kind(request: ScoreRequest) -> str:
    """What the alignments of a request with gradients are: `cosine`, `product` or `head`, as `Ranking` says."""
    if request.products is None or (request.norms is not None and request.norms_kind != "head"):
        return "cosine"
    return "product" if request.norms is None else "head"


def score_products(request: ScoreRequest, strategy: str, scale: float, evidence: Evidence) -> Scored:
    """Rank the problems of a request by the products of their rollouts.

    Args:
        request: with `products` taken with the run's validation gradient.
        strategy: the rule's name.
        scale: of products of the validation problems, the mean of them. In another unit of the gradients it is another as
            well.
        evidence: from earlier requests, without a unit: alignments without exact norms count in standard deviations.

    Raises:
        InvalidValue: the strategy needs a column that was not sent, or sketches; or products and norms disagree.
    """
    kind = alignment_kind(request)
    columns = _columns(request, kind)
    candidates = _candidates(request, strategy, columns, evidence)
    order, priorities = ranked(candidates, strategy)
    unit = scale if kind == "product" else 1.0
    scatter = None if kind == "cosine" else Spread.of(_without_unit(columns.alignments, unit)[columns.signal])
    unit *= 1.0 if scatter is None else _deviation(scatter.behind(evidence.scatter))
    counted = columns.shrunken if request.shrink_weights else columns.alignments
    weights = evidence_weights(_without_unit(counted, unit), columns.signal, evidence, columns.kept)
    each = rollout_weights(columns.rollouts, columns.given_norms) if request.rollout_weights else None
    return Scored(
        ids=[candidates.ids[i] for i in order],
        priorities=priorities[order],
        alignments=columns.alignments[order],
        weights=weights[order],
        norms=None if candidates.norms is None else candidates.norms[order],
        signal=columns.signal[order],
        pass_rates=None if candidates.pass_rates is None else candidates.pass_rates[order],
        rejected=rejected_rows(request, columns.rollouts.finite, PRODUCTS_NOT_FINITE),
        reliability=None,
        strength=None if evidence.predicted is None else evidence.strength,
        evidence=_without_unit(columns.alignments, unit)[order],
        scatter=scatter,
        errors=columns.errors[order],
        noise=ranking_noise(columns.alignments, columns.errors),
        rollout_weights=None if each is None else [each[i] for i in columns.kept[order]],
    )


@dataclass(frozen=True)
class _Columns:
    """What the products of a request come to: of all its problems, and of the n that are finite.

    Attributes:
        rollouts: of all problems.
        given_norms: of all problems, as they were sent; None where alignments are products.
        kept: places of the finite ones in the request, [n].
        alignments: [n].
        errors: their standard errors, [n]; NaN for a problem with one rollout.
        shrunken: the alignments drawn towards their mean by these, [n].
        signal: [n].
    """

    rollouts: RolloutProducts
    given_norms: Floats | None
    kept: npt.NDArray[np.intp]
    alignments: Floats
    errors: Floats
    shrunken: Floats
    signal: npt.NDArray[np.bool_]


def _columns(request: ScoreRequest, kind: str) -> _Columns:
    assert request.products is not None
    rollouts = RolloutProducts.of(request.products)
    norms = None if request.norms is None else np.array(request.norms, dtype=np.float64)
    alignments, errors = rollouts.sums, rollouts.errors
    if norms is not None:
        rollouts = replace(rollouts, signal=rollouts.finite & (norms > 0))
        alignments = with_norms(rollouts, norms, "exact" if kind == "cosine" else "head")
        errors = errors_over_norms(rollouts, norms, alignments)
    kept = np.flatnonzero(rollouts.finite)
    alignments, errors, signal = alignments[kept], errors[kept], rollouts.signal[kept]
    shrunken = shrunken_alignments(alignments, errors, rollouts.counts[kept], signal)
    return _Columns(rollouts, norms, kept, alignments, errors, shrunken, signal)


def _candidates(request: ScoreRequest, strategy: str, columns: _Columns, evidence: Evidence) -> Candidates:
    kept, norms = columns.kept, columns.given_norms
    none_known = len(kept) > 0 and bool(np.isnan(columns.errors).all())
    return Candidates(
        run_id=request.run_id,
        policy_version=request.policy_version,
        ids=[request.problem_ids[i] for i in kept],
        alignments=columns.alignments,
        norms=None if norms is None else np.where(columns.signal, norms[kept], 0.0),
        pass_rates=None if request.pass_rates is None else np.array(request.pass_rates, dtype=np.float64)[kept],
        pooled_alignments=partial(_without_sketches, strategy),
        cosines=partial(_without_sketches, strategy),
        products=columns.rollouts.sums[kept],
        shrunken=None if none_known else columns.shrunken,
        signal_chances=partial(signal_chances, request, evidence, kept),
    )


def _deviation(scatter: Spread) -> float:
    """What one alignment is worth as evidence; the mean of the validation problems' where there are too few to tell."""
    return scatter.deviation if scatter.weight >= _FEWEST and scatter.deviation > 0 else 1.0


def _without_unit(alignments: Floats, unit: float) -> Floats:
    with np.errstate(over="ignore"):
        return np.clip(alignments / unit, -_MOST_EVIDENCE, _MOST_EVIDENCE)


def _without_sketches(strategy: str) -> Floats:
    raise InvalidValue(
        f"strategy {strategy!r} compares the gradients of the candidates with one another, for which a run of products has "
        "nothing; use a strategy that ranks by products (cosine, say, or shrunken), or send sketches, in another run.",
        param="strategy",
    )

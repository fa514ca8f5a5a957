"""What the compute thread does for one `POST /score`: from sketches, or pass rates alone, to ranked columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gradalign import InvalidValue, RejectedProblem, ScoreRequest, SketchMatrix
from gradalign_scorer.posterior.beliefs import Beliefs, observations
from gradalign_scorer.posterior.thompson import expected_signal
from gradalign_scorer.ranking.aggregation import CANCELLED, pooled_weights
from gradalign_scorer.ranking.alignment import Products, SketchRows, gram, products, weighted_sum
from gradalign_scorer.ranking.reliability import RankingNoise, Reliability, reliability
from gradalign_scorer.ranking.strategies import STRATEGIES, Candidates
from gradalign_scorer.ranking.weighting import Spread, group_weights, quality_weights

__all__ = [
    "NOT_FINITE",
    "Evidence",
    "Scored",
    "Scoring",
    "evidence_weights",
    "ranked",
    "rejected_rows",
    "score",
    "score_rates",
    "score_together",
    "signal_chances",
]

Floats = npt.NDArray[np.float64]

NOT_FINITE = "its sketch holds NaN or Inf (-128 where it is int8); look for an overflow in its loss or gradient"
_DOT_TOLERANCE = 1e-2


@dataclass(frozen=True)
class Evidence:
    """What the run remembers of the problems of a request, [problems] in the request's order.

    Attributes:
        sums: discounted sums of earlier alignments.
        weights: discounted counts of them.
        spread: standard deviation of `alignments` as evidence in the run; None before its first scores.
        scatter: of alignments without exact norms in the run, before they are divided by their standard deviation.
        predicted: quality that features predict; None where none were sent. Then `sums` and `weights` are of strengths:
            `weighting.quality_weights` says how.
        strength: the alignment to expect of a problem like the validation problems.
        beliefs: about success rates; None where nothing asks for them, or nothing is known.
    """

    sums: Floats
    weights: Floats
    spread: float | None
    predicted: Floats | None = None
    strength: float = 1.0
    beliefs: Beliefs | None = None
    scatter: Spread = field(default_factory=Spread)


@dataclass(frozen=True)
class Scored:
    """A ranking as columns, best first, n of them.

    Attributes:
        ids: problem ids.
        priorities: [n].
        alignments: [n], or None without a validation gradient.
        weights: [n].
        norms: [n], or None of products without norms, and of pass rates.
        signal: [n]; False for a zero sketch.
        pass_rates: [n], or None where not sent.
        rejected: rows with NaN or Inf.
        reliability: None for fewer than 3 problems with a signal.
        strength: of the alignments as evidence of quality; None where no features were sent.
        evidence: the alignments without a unit, [n]; None without a validation gradient.
        scatter: of the alignments that this unit was read of; None where they need none.
        errors: standard errors of the alignments, [n], NaN where unknown; None of sketches.
        noise: None for fewer than 3 known errors.
        rollout_weights: n arrays, [rollouts] each; None where not asked for.
    """

    ids: list[str]
    priorities: Floats
    alignments: Floats | None
    weights: Floats
    norms: Floats | None
    signal: npt.NDArray[np.bool_]
    pass_rates: Floats | None
    rejected: list[RejectedProblem]
    reliability: Reliability | None
    strength: float | None = None
    evidence: Floats | None = None
    scatter: Spread | None = None
    errors: Floats | None = None
    noise: RankingNoise | None = None
    rollout_weights: list[Floats] | None = None


@dataclass(frozen=True)
class Scoring:
    """A request to rank, and what it takes; arguments as for `score`."""

    request: ScoreRequest
    strategy: str
    evidence: Evidence


def score_together(
    requests: Sequence[Scoring], validation: Tensor | None, device: torch.device
) -> list[Scored | Exception]:
    """Rank the problems of several requests for one validation gradient, with one pass over all of their sketches.

    Each is ranked as if it were alone: a request that is refused has its error in its place.

    Args:
        requests: with sketches of one `dim`.
        validation: unit validation gradient, float32 [dim], or None.
        device: to compute on.
    """
    matrices = [_sketches(each.request) for each in requests]
    parts = products(SketchRows(matrices), validation, device).split([matrix.rows for matrix in matrices])
    results: list[Scored | Exception] = []
    for each, part in zip(requests, parts, strict=True):
        try:
            results.append(score(each.request, each.strategy, validation, each.evidence, device, parts=part))
        except Exception as error:
            results.append(error)
    return results


def score(
    request: ScoreRequest,
    strategy: str,
    validation: Tensor | None,
    evidence: Evidence,
    device: torch.device,
    *,
    parts: Products | None = None,
) -> Scored:
    """Rank the problems of a request by their sketches.

    Args:
        request: with `dots` only where they belong to `validation`.
        strategy: the rule's name.
        validation: unit validation gradient, float32 [dim], or None.
        evidence: from earlier requests.
        device: to compute on.
        parts: products of the sketches with `validation`, where they were taken already.

    Raises:
        InvalidValue: the strategy needs a column that was not sent, or the dots are longer than the norms.
        ValidationMissing: the strategy needs a validation gradient.
    """
    rows = SketchRows([_sketches(request)])
    parts = parts or products(rows, validation, device)
    signal = _signal(request, parts)
    norms = np.where(signal, parts.norms if request.norms is None else np.array(request.norms), 0.0)
    alignments = None if validation is None else _alignments(request, parts, signal, norms)
    kept = np.flatnonzero(parts.finite)
    rates = None if request.pass_rates is None else np.array(request.pass_rates, dtype=np.float64)[kept]
    candidates = Candidates(
        run_id=request.run_id,
        policy_version=request.policy_version,
        ids=[request.problem_ids[i] for i in kept],
        alignments=None if alignments is None else alignments[kept],
        norms=norms[kept],
        pass_rates=rates,
        pooled_alignments=lambda: _pooled_alignments(rows, parts, request.tokens, device)[kept],
        cosines=lambda: _cosines(rows, parts, device)[np.ix_(kept, kept)],
        signal_chances=partial(signal_chances, request, evidence, kept),
    )
    order, priorities = ranked(candidates, strategy)
    weights = evidence_weights(candidates.alignments, signal[kept], evidence, kept)
    aligned = None if candidates.alignments is None else candidates.alignments[order]
    return Scored(
        ids=[candidates.ids[i] for i in order],
        priorities=priorities[order],
        alignments=aligned,
        weights=weights[order],
        norms=norms[kept][order],
        signal=signal[kept][order],
        pass_rates=None if rates is None else rates[order],
        rejected=rejected_rows(request, parts.finite, NOT_FINITE),
        reliability=_reliability(request, alignments, signal),
        strength=None if evidence.predicted is None else evidence.strength,
        evidence=aligned,
    )


def score_rates(request: ScoreRequest, strategy: str, evidence: Evidence) -> Scored:
    """Rank the problems of a request by their pass rates alone; a rate of 0 or 1 is no signal.

    Raises:
        InvalidValue: the strategy needs what only gradients tell.
    """
    everything = np.arange(len(request.problem_ids))
    rates = np.array(request.pass_rates, dtype=np.float64)
    candidates = Candidates(
        run_id=request.run_id,
        policy_version=request.policy_version,
        ids=request.problem_ids,
        alignments=None,
        norms=None,
        pass_rates=rates,
        pooled_alignments=lambda: np.zeros(len(rates)),
        cosines=lambda: np.zeros((len(rates), len(rates))),
        signal_chances=partial(signal_chances, request, evidence, everything),
    )
    order, priorities = ranked(candidates, strategy)
    signal = ((rates > 0) & (rates < 1))[order]
    return Scored(
        ids=[candidates.ids[i] for i in order],
        priorities=priorities[order],
        alignments=None,
        weights=signal.astype(np.float64),
        norms=None,
        signal=signal,
        pass_rates=rates[order],
        rejected=[],
        reliability=None,
    )


def signal_chances(request: ScoreRequest, evidence: Evidence, kept: npt.NDArray[np.intp]) -> Floats | None:
    """The expected chance of a signal of the problems `kept`, with what this request says of them, [kept]."""
    if request.pass_rates is None or request.rollouts is None:
        return None
    held = evidence.beliefs or Beliefs.none(len(request.problem_ids))
    renewed = held.observed(observations(request.pass_rates, request.rollouts), request.belief_discount)
    return expected_signal(renewed, request.rollouts)[kept]


def _sketches(request: ScoreRequest) -> SketchMatrix:
    assert request.sketches is not None
    return request.sketches


def ranked(candidates: Candidates, strategy: str) -> tuple[list[int], Floats]:
    """Places of the candidates, best first, and their priorities, [n], in their own order."""
    # -0 would be written as such, and is no less than 0.
    priorities = STRATEGIES[strategy].priorities(candidates) + 0.0
    return sorted(range(len(candidates.ids)), key=lambda i: (-priorities[i], candidates.ids[i])), priorities


def rejected_rows(request: ScoreRequest, finite: npt.NDArray[np.bool_], reason: str) -> list[RejectedProblem]:
    """The rows of a request that are not finite, by name."""
    return [RejectedProblem(problem_id=request.problem_ids[i], reason=reason) for i in np.flatnonzero(~finite)]


def evidence_weights(
    alignments: Floats | None, signal: npt.NDArray[np.bool_], evidence: Evidence, kept: npt.NDArray[np.intp]
) -> Floats:
    """Weights of the problems `kept` of a request, from their alignments and what is remembered of them, [kept]."""
    remembered = {"evidence_sum": evidence.sums[kept], "evidence_weight": evidence.weights[kept]}
    if alignments is None or evidence.predicted is None:
        return group_weights(alignments, signal, spread=evidence.spread, **remembered)
    return quality_weights(
        alignments,
        signal,
        strength=evidence.strength,
        predicted=evidence.predicted[kept],
        spread=evidence.spread,
        **remembered,
    )


def _exact(request: ScoreRequest) -> bool:
    return request.dots is not None and request.norms is not None


def _signal(request: ScoreRequest, parts: Products) -> npt.NDArray[np.bool_]:
    """Which rows say anything: a gradient too small for a float16 sketch still has an exact norm and dot."""
    if _exact(request):
        return parts.finite & (np.array(request.norms) > 0)
    return parts.signal


def _alignments(request: ScoreRequest, parts: Products, signal: npt.NDArray[np.bool_], norms: Floats) -> Floats:
    if request.dots is None:
        # Both lengths from the sketch: their errors cancel in part, and the quotient stays within [-1, 1].
        return parts.cosines()
    # A quotient beyond float64 is infinite, and refused or clipped below like any other above 1.
    with np.errstate(over="ignore"):
        quotient: Floats = np.divide(np.array(request.dots), norms, out=np.zeros(len(norms)), where=signal)
    worst = int(np.argmax(np.abs(quotient)))
    if _exact(request) and abs(quotient[worst]) > 1 + _DOT_TOLERANCE:
        raise InvalidValue(
            f"dots[{worst}] is {request.dots[worst]:g} and norms[{worst}] is {norms[worst]:g}; expected |dot| <= norm, as "
            "it is for a product with a vector of length 1. Divide the validation gradient by its norm before taking "
            "products, and take both from the same gradient.",
            param="dots",
        )
    return np.clip(quotient, -1.0, 1.0)


def _pooled_alignments(rows: SketchRows, parts: Products, tokens: list[int] | None, device: torch.device) -> Floats:
    pooled = weighted_sum(rows, pooled_weights(parts, tokens), device)
    norm = float(torch.linalg.vector_norm(pooled.double()))
    if norm < CANCELLED:
        # The direction of a rounding error would rank them at random, and by the unit of their gradients.
        return np.zeros(len(rows))
    return products(rows, (pooled.double() / norm).float(), device).cosines()


def _cosines(rows: SketchRows, parts: Products, device: torch.device) -> Floats:
    inverse = np.divide(1.0, parts.norms, out=np.zeros_like(parts.norms), where=parts.signal)
    return gram(rows, inverse, device)


def _reliability(request: ScoreRequest, alignments: Floats | None, signal: npt.NDArray[np.bool_]) -> Reliability | None:
    if alignments is None:
        return None
    estimate = reliability(alignments[signal], _sketches(request).dim)
    return Reliability(1.0) if estimate and _exact(request) else estimate

"""From what was computed to what is stored, what is answered, and what `GET /runs/{run}/rounds` will show of it."""

from __future__ import annotations

import time
from typing import Any

import msgpack
import numpy as np

from gradalign import (
    Ranking,
    RefreshReply,
    RefreshRequest,
    RejectedProblem,
    RoundRecord,
    ScoreRequest,
    Selection,
    SelectRequest,
)
from gradalign_scorer.posterior.beliefs import observations
from gradalign_scorer.ranking.aggregation import ValidationGradient
from gradalign_scorer.ranking.predictor import Moments
from gradalign_scorer.ranking.products import PRODUCTS_NOT_FINITE, alignment_kind
from gradalign_scorer.ranking.scoring import NOT_FINITE, Scored
from gradalign_scorer.ranking.selection import Picks, StoredScores, tenths
from gradalign_scorer.store import RefreshCommit, RunRecord, ScoreCommit, SelectionCommit, ValidationRecord

__all__ = ["refresh_commit", "refresh_round", "score_commit", "score_round", "select_round", "selection_commit"]


def score_commit(
    request: ScoreRequest, digest: bytes, strategy: str, validation: ValidationRecord | None, scored: Scored
) -> ScoreCommit:
    """The write and the reply of a ranked /score."""
    count = len(scored.ids)
    selected = min(request.select or 0, count)
    unknown = np.full(count, np.nan)
    trust = scored.reliability
    version = validation.version if validation else None
    return ScoreCommit(
        run_id=request.run_id,
        policy_version=request.policy_version,
        epoch=request.epoch,
        request_id=request.request_id,
        digest=digest,
        reply=_packed(_ranking(request, strategy, validation, scored, selected)),
        record=score_round(request, strategy, validation, scored, selected),
        projection=request.projection,
        validation_version=version or 0,
        strategy=request.strategy,
        ids=scored.ids,
        alignments=unknown if scored.alignments is None else scored.alignments,
        priorities=scored.priorities,
        signal=scored.signal,
        selected=np.arange(count) < selected,
        pass_rates=scored.pass_rates,
        reliability=trust.value if trust else None,
        moments=_moments(request, scored),
        evidence=scored.evidence,
        scatter=scored.scatter,
        alignment_kind=None if request.products is None else alignment_kind(request),
        rollout_reliability=scored.noise.reliability if scored.noise else None,
        of_rates=request.kind == "pass_rates",
        **_evidence(scored),
        **_observed(request, strategy, scored),
    )


def _evidence(scored: Scored) -> dict[str, Any]:
    # Where evidence has a strength, what is older is worth less because it is weaker, not because it is older.
    return {} if scored.strength is None else {"strength": scored.strength, "evidence_kept": 0.97}


def _observed(request: ScoreRequest, strategy: str, scored: Scored) -> dict[str, Any]:
    """What is added to the beliefs about success rates, where such are kept."""
    kept = request.kind == "pass_rates" or request.discount is not None or strategy == "posterior"
    if not kept or request.rollouts is None or scored.pass_rates is None or not scored.ids:
        return {}
    by_id = dict(zip(request.problem_ids, request.rollouts, strict=True))
    sizes = [by_id[problem_id] for problem_id in scored.ids]
    return {"observed": observations(scored.pass_rates, sizes), "discount": request.belief_discount}


def _moments(request: ScoreRequest, scored: Scored) -> Moments | None:
    """Of the features and alignments of what was scored; None where either is missing."""
    if request.features is None or scored.evidence is None or scored.strength is None or not scored.signal.any():
        return None
    by_id = dict(zip(request.problem_ids, request.features, strict=True))
    table = np.array([by_id[problem_id] for problem_id in scored.ids])
    return Moments.of(table[scored.signal], scored.evidence[scored.signal], scored.strength)


def _ranking(
    request: ScoreRequest, strategy: str, validation: ValidationRecord | None, scored: Scored, selected: int
) -> Ranking:
    trust = scored.reliability
    return Ranking(
        run_id=request.run_id,
        policy_version=request.policy_version,
        validation_version=validation.version if validation else None,
        validation_policy_version=validation.policy_version if validation else None,
        strategy=strategy,
        problem_ids=scored.ids,
        priorities=scored.priorities.tolist(),
        alignments=None if scored.alignments is None else scored.alignments.tolist(),
        weights=scored.weights.tolist(),
        norms=None if scored.norms is None else scored.norms.tolist(),
        no_signal=[i for i, has in zip(scored.ids, scored.signal, strict=True) if not has],
        selected=scored.ids[:selected],
        rejected=scored.rejected,
        reliability=trust.value if trust else None,
        advised_dim=trust.advised_dim if trust else None,
        request_id=request.request_id,
        alignment_kind=None if request.kind == "pass_rates" else alignment_kind(request),
        standard_errors=None if scored.errors is None else [None if np.isnan(e) else e for e in scored.errors.tolist()],
        rollout_reliability=scored.noise.reliability if scored.noise else None,
        rollout_weights=None if scored.rollout_weights is None else [each.tolist() for each in scored.rollout_weights],
    )


def refresh_commit(
    request: RefreshRequest, digest: bytes, version: int, gradient: ValidationGradient, *, base: int | None = None
) -> RefreshCommit:
    """The write and the reply of a /refresh_validation that makes `version`, from version `base` where that decayed."""
    reason = NOT_FINITE if request.products is None else PRODUCTS_NOT_FINITE
    reply = RefreshReply(
        run_id=request.run_id,
        policy_version=request.policy_version,
        validation_version=version,
        problems=int(gradient.used.sum()),
        coherence=gradient.coherence,
        rejected=[
            RejectedProblem(problem_id=request.problem_ids[i], reason=reason) for i in np.flatnonzero(~gradient.finite)
        ],
        request_id=request.request_id,
        products_quotient=gradient.quotient,
    )
    return RefreshCommit(
        run_id=request.run_id,
        policy_version=request.policy_version,
        epoch=request.epoch,
        request_id=request.request_id,
        digest=digest,
        reply=_packed(reply),
        record=refresh_round(request, version, gradient),
        projection=request.projection,
        validation=ValidationRecord(version, request.policy_version, gradient.vector.numpy(), gradient.length),
        problems=reply.problems,
        coherence=gradient.coherence,
        base=_base(request, base),
        quotient=gradient.quotient,
    )


def _base(request: RefreshRequest, base: int | None) -> int | None:
    """A refresh that was to decay a gradient, and found none, must still find none when it is committed."""
    return (base or 0) if request.decay is not None else None


def selection_commit(
    request: SelectRequest, digest: bytes, run: RunRecord, scores: StoredScores, picks: Picks
) -> SelectionCommit:
    """The write and the reply of a /select."""
    selected = [scores.ids[i] for i in picks.indices]
    reply = Selection(
        run_id=request.run_id,
        policy_version=request.policy_version,
        selected=selected,
        priorities=[None if np.isnan(value) else float(value) for value in picks.values],
        explored=[scores.ids[i] for i in picks.explored],
        request_id=request.request_id,
    )
    return SelectionCommit(
        run_id=request.run_id,
        policy_version=request.policy_version,
        epoch=request.epoch,
        request_id=request.request_id,
        digest=digest,
        reply=_packed(reply),
        record=select_round(request, run.validation_version or None, len(scores.ids), picks),
        ids=selected,
    )


def _packed(reply: Ranking | RefreshReply | Selection) -> bytes:
    packed: bytes = msgpack.packb(reply.to_map())
    return packed


_QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


def score_round(
    request: ScoreRequest, strategy: str, validation: ValidationRecord | None, scored: Scored, selected: int
) -> RoundRecord:
    """The record of a /score; the store numbers it."""
    summary: dict[str, Any] = {
        "strategy": strategy,
        "no_signal": int((~scored.signal).sum()),
        "rejected": len(scored.rejected),
    }
    if scored.alignments is not None and scored.ids:
        summary["alignment_quantiles"] = np.quantile(scored.alignments, _QUANTILES).tolist()
        if selected:
            summary["selected_alignment"] = float(scored.alignments[:selected].mean())
            summary["selected_tenths"] = tenths(scored.alignments, np.arange(selected))
    if scored.pass_rates is not None and scored.ids:
        summary["mean_pass_rate"] = float(scored.pass_rates.mean())
    if scored.reliability is not None:
        summary["reliability"] = scored.reliability.value
        if scored.reliability.advised_dim is not None:
            summary["advised_dim"] = scored.reliability.advised_dim
    if scored.noise is not None:
        summary["rollout_reliability"] = scored.noise.reliability
        summary["alignment_variance"] = scored.noise.alignment_variance
        summary["rollout_variance"] = scored.noise.rollout_variance
    if validation is not None:
        summary["validation_age"] = request.policy_version - validation.policy_version
    version = validation.version if validation else None
    return _record("score", request.policy_version, version, summary, problems=len(scored.ids), selected=selected)


def refresh_round(request: RefreshRequest, version: int, gradient: ValidationGradient) -> RoundRecord:
    """The record of a /refresh_validation."""
    summary: dict[str, Any] = {
        "no_signal": int((gradient.finite & ~gradient.used).sum()),
        "rejected": int((~gradient.finite).sum()),
    }
    if gradient.coherence is not None:
        summary["coherence"] = gradient.coherence
    if gradient.quotient is not None:
        summary["products_quotient"] = gradient.quotient
    return _record("refresh", request.policy_version, version, summary, problems=int(gradient.used.sum()), selected=0)


def select_round(request: SelectRequest, version: int | None, considered: int, picks: Picks) -> RoundRecord:
    """The record of a /select; `problems` is how many it chose from."""
    summary: dict[str, Any] = {"explored": len(picks.explored)}
    if picks.tenths is not None:
        summary["selected_tenths"] = picks.tenths
    return _record("select", request.policy_version, version, summary, problems=considered, selected=len(picks.indices))


def _record(
    kind: str, policy_version: int, version: int | None, summary: dict[str, Any], *, problems: int, selected: int
) -> RoundRecord:
    return RoundRecord(
        round=0,
        kind=kind,
        at=time.time(),
        policy_version=policy_version,
        validation_version=version,
        problems=problems,
        selected=selected,
        summary=summary,
    )

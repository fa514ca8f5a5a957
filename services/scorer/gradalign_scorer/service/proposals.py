"""What to pick by, other than by the priorities that are stored: expected qualities, or beliefs about success rates.

What a problem's quality is expected to be comes from its own scores and from those of problems with features like its own.
Quality is 1 for problems like the validation problems, 0 for those that have nothing to do with them. Problems never scored
are judged by problems like them, and those scored often by themselves.
"""

from __future__ import annotations

import dataclasses
import zlib

import numpy as np
import numpy.typing as npt

from gradalign import InvalidValue, SelectRequest
from gradalign_scorer.posterior.beliefs import Beliefs
from gradalign_scorer.posterior.thompson import drawn_rates
from gradalign_scorer.ranking.predictor import Moments, Predictor
from gradalign_scorer.ranking.scoring import Evidence
from gradalign_scorer.ranking.selection import PickRule, Picks, StoredScores, pick
from gradalign_scorer.ranking.weighting import Spread, prior_weight
from gradalign_scorer.store import ProblemColumns, RunRecord

__all__ = ["drawn_worths", "expectations", "picks_by_belief", "picks_of", "stored_scores", "with_predictions"]

Floats = npt.NDArray[np.float64]


def picks_of(scores: StoredScores, request: SelectRequest) -> Picks:
    """What a /select picks by these scores."""
    rule = PickRule(
        policy_version=request.policy_version,
        count=request.count,
        half_life=request.half_life,
        exploration=request.exploration,
        cooldown=request.cooldown,
        seed=request.seed,
    )
    return pick(scores, rule)


def stored_scores(columns: ProblemColumns) -> StoredScores:
    """Priorities as last ranked."""
    return StoredScores(
        ids=columns.ids,
        priorities=columns.column("priority"),
        policy_versions=columns.column("policy_version"),
        selected_versions=columns.column("selected_version"),
    )


def picks_by_belief(request: SelectRequest, run: RunRecord) -> bool:
    """Whether a /select picks by beliefs about success rates.

    Raises:
        InvalidValue: it asks for that and the run keeps none, or it sends features to a run that learns nothing of them.
    """
    if request.features is not None:
        if run.kind == "pass_rates":
            raise InvalidValue(
                f"features were sent and run {run.run_id!r} is one of pass_rates alone, which learns nothing of them; leave "
                "them out: it picks by its beliefs about success rates.",
                param="features",
            )
        return False
    if request.strategy == "posterior" and not run.keeps_beliefs:
        raise InvalidValue(
            f"strategy 'posterior' picks by beliefs about success rates and run {run.run_id!r} keeps none; send discount "
            "with /score, with pass_rates and rollouts, or pass_rates and rollouts alone, in a run of their own.",
            param="strategy",
        )
    return run.keeps_beliefs and "posterior" in (request.strategy, run.strategy)


def drawn_worths(columns: ProblemColumns, beliefs: Beliefs, request: SelectRequest) -> StoredScores:
    """Scores whose priorities are minus the distances from one half of rates that are drawn once from the beliefs.

    All are as fresh as the request, so that what is picked for exploration is drawn uniformly.

    Args:
        columns: what is remembered of the problems, n of them.
        beliefs: about them.
        request: its seed and policy version, and its run's name, decide the draw.
    """
    scores = stored_scores(columns)
    faded = beliefs.faded(request.policy_version, request.half_life)
    key = (request.seed, request.policy_version, zlib.crc32(request.run_id.encode()))
    worths = -np.abs(drawn_rates(scores.ids, faded, key) - 0.5)
    fresh = np.full(len(scores.ids), float(request.policy_version))
    return dataclasses.replace(scores, priorities=worths, policy_versions=fresh)


def with_predictions(evidence: Evidence, moments: Moments | None, features: Floats, strength: float) -> Evidence:
    """Evidence of problems [n] with the qualities that their features [n, F] predict, within [-1, 1].

    Args:
        evidence: of the problems.
        moments: of the run; None where it has learned nothing yet: all qualities are 0.
        features: of the problems.
        strength: the alignment to expect at quality 1.
    """
    predicted = np.zeros(len(features)) if moments is None else Predictor(moments).predict(features)
    return dataclasses.replace(evidence, predicted=np.clip(predicted, -1.0, 1.0), strength=strength)


def expectations(
    columns: ProblemColumns,
    features: Floats,
    moments: Moments | None,
    request: SelectRequest,
    spread: Spread | None,
) -> StoredScores:
    """Scores whose priorities are expected qualities, under one Thompson draw of what features predict.

    A good problem is worth more the more its rewards are expected to differ, since a group whose rollouts all earn the same
    takes rollouts and gives nothing; and less the more often it was tried, since the same problem again teaches less than
    another like it.

    All scores are as fresh as the request, so that what is picked for exploration is drawn uniformly.

    Args:
        columns: what is remembered of the problems, n of them.
        features: of them, [n, F].
        moments: of the run; None where it has learned nothing yet: every priority is unknown.
        request: its seed and policy version decide the draw.
        spread: of the evidence in the run; None before the first scores.
    """
    scores = stored_scores(columns)
    fresh = np.full(len(scores.ids), float(request.policy_version))
    if moments is None:
        return dataclasses.replace(scores, priorities=np.full(len(fresh), np.nan), policy_versions=fresh)
    drawn = Predictor(moments).draw(features, np.random.default_rng([request.seed, request.policy_version]))
    pull = prior_weight(spread.deviation if spread else 0.0)
    expected = (pull * drawn + columns.column("evidence_sum")) / (pull + columns.column("evidence_weight"))
    gain = _informative(columns.column("pass_rate")) / np.sqrt(1 + columns.column("times_scored"))
    worth = np.where(expected > 0, expected * gain, expected)
    return dataclasses.replace(scores, priorities=worth, policy_versions=fresh)


def _informative(rates: Floats) -> Floats:
    """`4 p (1 - p)`, how much the rewards of a group are expected to differ, [n]; the mean of the others for unknown rates.

    A rate is seen over a few rollouts, so it is first drawn towards 1/2, as if by two more.
    """
    smoothed = (8 * rates + 1) / 10
    found = 4 * smoothed * (1 - smoothed)
    known = np.isfinite(found)
    return np.where(known, found, found[known].mean() if known.any() else 1.0)

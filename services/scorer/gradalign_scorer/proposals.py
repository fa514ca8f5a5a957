"""What a problem's alignment is expected to be, from its own scores and from those of problems with features like its own.

What its features predict counts as so many scores of its own (`PRIOR`): problems never scored are judged by problems like
them, and those scored often by themselves.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from gradalign import SelectRequest
from gradalign_scorer.predictor import Moments, Predictor
from gradalign_scorer.scoring import Evidence
from gradalign_scorer.selection import StoredScores
from gradalign_scorer.store import ProblemColumns

__all__ = ["PRIOR", "expectations", "stored_scores", "with_predictions"]

Floats = npt.NDArray[np.float64]

PRIOR = 2.0
"""Scores of its own that what a problem's features predict counts for."""

VISIT_DISCOUNT = 0.9
"""Of a score at each later one; the store's of evidence."""


def stored_scores(columns: ProblemColumns) -> StoredScores:
    """Priorities as last ranked."""
    return StoredScores(
        ids=columns.ids,
        priorities=columns.column("priority"),
        policy_versions=columns.column("policy_version"),
        selected_versions=columns.column("selected_version"),
    )


def with_predictions(evidence: Evidence, moments: Moments, features: Floats) -> Evidence:
    """Evidence of problems [n] with what their features [n, F] predict added to it."""
    predicted = Predictor(moments).predict(features)
    return dataclasses.replace(evidence, sums=evidence.sums + PRIOR * predicted, weights=evidence.weights + PRIOR)


def expectations(
    columns: ProblemColumns, features: Floats, moments: Moments | None, request: SelectRequest
) -> StoredScores:
    """Scores whose priorities are expected alignments, under one Thompson draw of what features predict.

    A group without a signal counts as alignment 0: it takes rollouts and gives nothing. All scores are as fresh as the
    request, so that what is picked for exploration is drawn uniformly.

    Args:
        columns: what is remembered of the problems, n of them.
        features: of them, [n, F].
        moments: of the run; None where it has learned nothing yet: every priority is unknown.
        request: its seed and policy version decide the draw.
    """
    scores = stored_scores(columns)
    fresh = np.full(len(scores.ids), float(request.policy_version))
    if moments is None:
        return dataclasses.replace(scores, priorities=np.full(len(fresh), np.nan), policy_versions=fresh)
    drawn = Predictor(moments).draw(features, np.random.default_rng([request.seed, request.policy_version]))
    visits = (1 - VISIT_DISCOUNT ** columns.column("times_scored")) / (1 - VISIT_DISCOUNT)
    expected = (PRIOR * drawn + columns.column("evidence_sum")) / (PRIOR + visits)
    return dataclasses.replace(scores, priorities=expected, policy_versions=fresh)

"""Expected alignments: a problem's own scores against what its features predict."""

import numpy as np
import pytest

from gradalign import SelectRequest
from gradalign_scorer.predictor import Moments, Predictor
from gradalign_scorer.proposals import PRIOR, expectations, with_predictions
from gradalign_scorer.scoring import Evidence
from gradalign_scorer.store import ProblemColumns

RNG = np.random.default_rng(1)
FEATURES = RNG.standard_normal((40, 3))
MOMENTS = Moments.of(FEATURES, FEATURES @ [0.3, 0.0, -0.1])
REQUEST = SelectRequest(run_id="r", policy_version=9, count=4, seed=5)


def columns(count, **changed):
    table = ProblemColumns.unpack([f"p{i}" for i in range(count)], [None] * count).table.copy()
    for name, values in changed.items():
        table[name] = values
    return ProblemColumns([f"p{i}" for i in range(count)], table)


def drawn(features, request=REQUEST):
    return Predictor(MOMENTS).draw(features, np.random.default_rng([request.seed, request.policy_version]))


def test_a_problem_never_scored_is_judged_by_its_features():
    found = expectations(columns(5), FEATURES[:5], MOMENTS, REQUEST)
    assert found.priorities == pytest.approx(drawn(FEATURES[:5]))
    assert found.policy_versions.tolist() == [9.0] * 5


def test_own_scores_outweigh_the_features_the_more_there_are():
    found = expectations(
        columns(3, evidence_sum=[0.0, 0.5, 3.0], times_scored=[0, 1, 60]), FEATURES[:3], MOMENTS, REQUEST
    ).priorities
    prior = drawn(FEATURES[:3])
    assert found[1] == pytest.approx((PRIOR * prior[1] + 0.5) / (PRIOR + 1))
    assert found[2] == pytest.approx((PRIOR * prior[2] + 3.0) / (PRIOR + 10), abs=0.01)  # 10 at most: 1 / (1 - 0.9)


def test_groups_without_a_signal_count_as_zero():
    found = expectations(columns(1, times_scored=[1]), FEATURES[:1], MOMENTS, REQUEST).priorities
    assert found == pytest.approx(drawn(FEATURES[:1]) * PRIOR / (PRIOR + 1))


def test_nothing_is_known_before_the_first_scores():
    found = expectations(columns(4), FEATURES[:4], None, REQUEST)
    assert np.isnan(found.priorities).all()


def test_the_weights_lean_on_what_features_predict():
    evidence = Evidence(np.array([0.0, 1.0]), np.array([0.0, 2.0]), 0.2)
    predicted = Predictor(MOMENTS).predict(FEATURES[:2])
    found = with_predictions(evidence, MOMENTS, FEATURES[:2])
    assert found.sums == pytest.approx([PRIOR * predicted[0], 1 + PRIOR * predicted[1]])
    assert found.weights.tolist() == [PRIOR, 2 + PRIOR]
    assert found.spread == 0.2

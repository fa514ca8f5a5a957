"""Expected qualities: a problem's own scores against what its features predict."""

import numpy as np
import pytest

from gradalign import SelectRequest
from gradalign_scorer.ranking.predictor import Moments, Predictor
from gradalign_scorer.ranking.scoring import Evidence
from gradalign_scorer.ranking.weighting import PRIOR_VARIANCE, Spread
from gradalign_scorer.service.proposals import expectations, with_predictions
from gradalign_scorer.store import ProblemColumns

RNG = np.random.default_rng(1)
FEATURES = RNG.standard_normal((40, 3))
MOMENTS = Moments.of(FEATURES, FEATURES @ [0.3, 0.0, -0.1])
SPREAD = Spread.of(np.array([-0.1, 0.3]))
REQUEST = SelectRequest(run_id="r", policy_version=9, count=4, seed=5)


def columns(count, **changed):
    table = ProblemColumns.unpack([f"p{i}" for i in range(count)], [None] * count).table.copy()
    for name, values in changed.items():
        table[name] = values
    return ProblemColumns([f"p{i}" for i in range(count)], table)


def drawn(features, request=REQUEST):
    return Predictor(MOMENTS).draw(features, np.random.default_rng([request.seed, request.policy_version]))


def test_a_problem_never_scored_is_judged_by_its_features():
    found = expectations(columns(5), FEATURES[:5], MOMENTS, REQUEST, SPREAD)
    assert found.priorities == pytest.approx(drawn(FEATURES[:5]))
    assert found.policy_versions.tolist() == [9.0] * 5


def test_own_scores_outweigh_the_features_the_more_they_say():
    known = columns(3, evidence_sum=[0.0, 0.02, 0.9], evidence_weight=[0.0, 0.04, 1.8])
    found = expectations(known, FEATURES[:3], MOMENTS, REQUEST, SPREAD).priorities
    prior, pull = drawn(FEATURES[:3]), 0.2**2 / PRIOR_VARIANCE
    assert found == pytest.approx((pull * prior + [0.0, 0.02, 0.9]) / (pull + np.array([0.0, 0.04, 1.8])), rel=1e-6)
    assert abs(found[2] - 0.5) < 0.05 < abs(found[1] - 0.5)


def test_nothing_is_known_before_the_first_scores():
    found = expectations(columns(4), FEATURES[:4], None, REQUEST, None)
    assert np.isnan(found.priorities).all()


def test_the_weights_are_told_what_features_predict():
    evidence = Evidence(np.array([0.0, 1.0]), np.array([0.0, 2.0]), 0.2)
    far = np.array([FEATURES[0], [50.0, 0, 0]])
    found = with_predictions(evidence, MOMENTS, far, 0.3)
    assert found.predicted == pytest.approx([Predictor(MOMENTS).predict(far)[0], 1.0])
    assert (found.strength, found.spread) == (0.3, 0.2)
    assert with_predictions(evidence, None, far, 0.3).predicted.tolist() == [0, 0]


def test_a_good_problem_is_worth_what_its_rewards_differ():
    same = np.repeat(FEATURES[:1], 4, axis=0)
    rates = columns(4, pass_rate=[1.0, 0.5, 0.0, np.nan], evidence_sum=[1.0] * 4, evidence_weight=[2.0] * 4)
    solved, half, never, unknown = expectations(rates, same, MOMENTS, REQUEST, SPREAD).priorities
    assert solved == pytest.approx(4 * 0.9 * 0.1 * half)
    assert never == pytest.approx(solved)
    assert unknown == pytest.approx((solved + half + never) / 3)


def test_the_same_problem_again_is_worth_less_and_a_bad_one_is_no_better_for_it():
    same = np.repeat(FEATURES[:1], 2, axis=0)
    for sums, order in ((1.0, 2.0), (-1.0, 1.0)):
        tried = columns(2, evidence_sum=[sums] * 2, evidence_weight=[2.0] * 2, times_scored=[0, 3])
        first, again = expectations(tried, same, MOMENTS, REQUEST, SPREAD).priorities
        assert first == pytest.approx(order * again)

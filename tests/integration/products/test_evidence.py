"""What a run of products remembers of its problems, while it learns and when rollouts alone make its rankings."""

import numpy as np
import pytest
from productruns import refresh

COUNT, ROLLOUTS = 48, 8
IDS = [f"p{i}" for i in range(COUNT)]
GOOD = np.arange(COUNT) % 2 == 0
FEATURES = np.ones((COUNT, 1))


def round_of(client, version, rng, *, effect, scale=1.0):
    """Scores of a round in which a good problem's products have the mean `effect` beside noise of 1; weights by problem."""
    noise = rng.standard_normal((COUNT, ROLLOUTS))
    products = scale * (effect * GOOD[:, None] + noise) / ROLLOUTS
    reply = refresh(client, policy_version=version, products=np.full((5, 4), 0.1 * scale), lengths=2.0 * scale)
    fields = {"products": products, "products_version": reply.validation_version, "features": FEATURES}
    weights = client.score(IDS, policy_version=version, **fields).weight_of()
    return np.array([weights[problem_id] for problem_id in IDS])


def gap(weights):
    return weights[GOOD].mean() - weights[~GOOD].mean()


def test_what_was_learned_is_not_washed_out_by_rankings_that_rollouts_alone_make(client):
    rng = np.random.default_rng(0)
    for version in range(6):
        weights = round_of(client, version, rng, effect=1.5)
    learned = gap(weights)
    assert learned > 0.4
    assert client.run().rollout_reliability > 0.3
    for version in range(6, 40):
        weights = round_of(client, version, rng, effect=0.0)
    assert client.run().rollout_reliability < 0.5
    assert gap(weights) > 0.5 * learned


def test_a_run_that_never_had_anything_to_rank_learns_nothing(client):
    rng = np.random.default_rng(1)
    for version in range(12):
        weights = round_of(client, version, rng, effect=0.0)
    assert abs(gap(weights)) < 0.15
    assert weights.std() < 0.2


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_another_unit_of_the_gradients_changes_no_weight(client, scale):
    rng = np.random.default_rng(2)
    for version in range(4):
        round_of(client, version, rng, effect=1.0)
    state = rng.bit_generator.state
    client.snapshot("before")
    plain = round_of(client, 4, rng, effect=1.0)
    client.restore("before")
    rng.bit_generator.state = state
    assert round_of(client, 4, rng, effect=1.0, scale=scale) == pytest.approx(plain, rel=1e-5)

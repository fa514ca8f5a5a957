"""What holds for proposals whatever the problems: the same request picks the same, and exploration keeps its share."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gradalign import SelectRequest
from gradalign_scorer.ranking.predictor import Moments
from gradalign_scorer.ranking.selection import PickRule, pick
from gradalign_scorer.ranking.weighting import Spread
from gradalign_scorer.service.proposals import expectations
from gradalign_scorer.store import ProblemColumns

SPREAD = Spread.of(np.array([-0.2, 0.2]))


def proposed(count, pool, seed, version, exploration, *, order=None, learned=True):
    """Ids picked from `pool` problems, and those of them that were explored; `order` permutes the rows."""
    rng = np.random.default_rng(pool)
    features = rng.standard_normal((pool, 4))
    moments = Moments.of(features, features[:, 0] / 4) if learned else None
    ids = [f"p{i}" for i in range(pool)]
    if order is not None:
        ids, features = [ids[i] for i in order], features[order]
    request = SelectRequest(run_id="r", policy_version=version, count=count, seed=seed, exploration=exploration)
    scores = expectations(ProblemColumns.unpack(ids, [None] * pool), features, moments, request, SPREAD)
    rule = PickRule(policy_version=version, count=count, half_life=16.0, exploration=exploration, cooldown=1, seed=seed)
    picks = pick(scores, rule)
    return [ids[i] for i in picks.indices], [ids[i] for i in picks.explored]


SMALL = {"pool": st.integers(1, 60), "seed": st.integers(0, 2**53 - 1), "version": st.integers(0, 10**6)}


@given(count=st.integers(1, 20), exploration=st.floats(0, 1), learned=st.booleans(), data=st.data(), **SMALL)
@settings(max_examples=60, deadline=None)
def test_the_same_request_proposes_the_same_in_any_order(count, pool, seed, version, exploration, learned, data):
    first = proposed(count, pool, seed, version, exploration, learned=learned)
    order = data.draw(st.permutations(range(pool)))
    assert proposed(count, pool, seed, version, exploration, order=np.array(order), learned=learned) == first
    assert len(set(first[0])) == min(count, pool)


@given(exploration=st.floats(0, 1), **SMALL)
@settings(max_examples=60, deadline=None)
def test_exploration_keeps_its_share(pool, seed, version, exploration):
    pool += 40
    picked, explored = proposed(16, pool, seed, version, exploration)
    assert len(picked) == 16
    assert int(16 * exploration) <= len(explored) <= int(16 * exploration) + 1


def test_exploration_is_uniform_and_the_rest_is_not():
    counts = {f"p{i}": [0, 0] for i in range(50)}
    for version in range(2000):
        picked, explored = proposed(6, 50, 0, version, 0.5)
        for place, ids in enumerate((picked[:3], explored)):
            for problem_id in ids:
                counts[problem_id][place] += 1
    best, uniform = np.array(list(counts.values())).T
    left = 2000 - best  # a problem that was picked as one of the best is not there to be explored
    assert np.all(uniform[best < 100] > 0.6 * (3 * 2000 / 50))
    assert np.corrcoef(uniform, left)[0, 1] > 0
    assert best.max() > 10 * np.median(best)

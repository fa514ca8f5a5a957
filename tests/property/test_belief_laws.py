"""What holds for beliefs whatever was seen: order does not count, nothing is forgotten at discount 1, draws repeat."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradalign import ScoreRequest, SelectRequest
from gradalign_scorer.posterior.beliefs import Beliefs, observations
from gradalign_scorer.posterior.thompson import drawn_rates, expected_signal
from gradalign_scorer.ranking.scoring import Evidence, score_rates
from gradalign_scorer.service.proposals import drawn_worths, picks_of
from gradalign_scorer.store import ProblemColumns

IDS = st.lists(st.text("abcXYZ019/é ", min_size=1, max_size=3), min_size=1, max_size=24, unique=True)
quick = settings(max_examples=60, deadline=None)


@st.composite
def batches(draw):
    """Ids with a group each, and what was counted of them before."""
    ids = draw(IDS)
    column = {"min_size": len(ids), "max_size": len(ids)}
    sizes = draw(st.lists(st.integers(1, 16), **column))
    rates = [draw(st.integers(0, size)) / size for size in sizes]
    counts = np.array(draw(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), **column)), dtype=np.float64)
    return ids, rates, sizes, counts


def scored(ids, rates, sizes, counts, discount):
    request = ScoreRequest(
        run_id="r", policy_version=3, problem_ids=ids, pass_rates=rates, rollouts=sizes, discount=discount
    )
    zeros = np.zeros(len(ids))
    return score_rates(request, "posterior", Evidence(zeros, zeros, None, beliefs=Beliefs(counts, zeros)))


@given(batches(), st.floats(0, 1), st.randoms(use_true_random=False))
@quick
def test_the_order_of_a_batch_changes_nothing(batch, discount, random):
    ids, rates, sizes, counts = batch
    places = list(range(len(ids)))
    random.shuffle(places)
    first = scored(ids, rates, sizes, counts, discount)
    shuffled = [[column[i] for i in places] for column in (ids, rates, sizes)]
    other = scored(*shuffled, counts[places], discount)
    assert other.ids == first.ids
    assert other.priorities.tolist() == first.priorities.tolist()
    assert other.weights.tolist() == first.weights.tolist()


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=12), st.randoms(use_true_random=False))
@quick
def test_without_discount_it_is_the_plain_posterior_of_all_rollouts_in_any_order(groups, random):
    """Beta(1 + successes, 1 + failures), whatever groups they came in."""
    random.shuffle(groups)
    beliefs = Beliefs.none(1)
    for right, wrong in groups:
        size = right + wrong
        beliefs = beliefs.observed(observations([right / size if size else 0.0], [size]), 1.0)
    assert beliefs.alpha[0] == pytest.approx(1 + sum(right for right, _ in groups))
    assert beliefs.beta[0] == pytest.approx(1 + sum(wrong for _, wrong in groups))


@given(batches(), st.floats(0, 1))
@quick
def test_a_discount_forgets_what_was_before_and_not_what_is_new(batch, discount):
    _, rates, sizes, counts = batch
    found = observations(rates, sizes)
    renewed = Beliefs(counts, np.zeros(len(rates))).observed(found, discount)
    assert (renewed.counts >= found).all()
    assert renewed.counts == pytest.approx(found + discount * counts)
    chances = expected_signal(renewed, sizes)
    assert ((chances >= 0) & (chances < 1)).all()


@given(batches(), st.integers(0, 2**53 - 1), st.integers(0, 10**6), st.integers(1, 12), st.data())
@quick
def test_the_same_request_on_the_same_state_picks_the_same_in_any_order(batch, seed, version, count, data):
    ids, _, _, counts = batch
    order = data.draw(st.permutations(range(len(ids))))
    request = SelectRequest(run_id="r", policy_version=version, count=count, seed=seed, exploration=0.25)

    def picked(places):
        columns = ProblemColumns.unpack([ids[i] for i in places], [None] * len(ids))
        scores = drawn_worths(columns, Beliefs(counts[places], np.zeros(len(ids))), request)
        picks = picks_of(scores, request)
        return [scores.ids[i] for i in picks.indices], [scores.ids[i] for i in picks.explored]

    first = picked(list(range(len(ids))))
    assert picked(order) == first
    assert len(set(first[0])) == min(count, len(ids))


def test_another_seed_version_or_run_draws_otherwise():
    ids, beliefs = [f"p{i}" for i in range(50)], Beliefs.none(50)
    draws = [drawn_rates(ids, beliefs, key).tolist() for key in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))]
    assert len({tuple(each) for each in draws}) == 4
    assert drawn_rates(ids, beliefs, (0, 0, 0)).tolist() == draws[0]

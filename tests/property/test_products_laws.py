"""The laws of a ranking by products: independent of order, unit and rollouts' places; true to what products add up to."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gradalign import InvalidValue, ScoreRequest
from gradalign_scorer.ranking.products import score_products
from gradalign_scorer.ranking.scoring import Evidence

IDS = st.lists(st.text("abcXYZ019/é ", min_size=1, max_size=3), min_size=1, max_size=16, unique=True)
GROUP = st.lists(st.integers(-8, 8).map(float), min_size=1, max_size=6)
STRATEGIES = ("cosine", "dot", "anti", "random", "accgreedy", "cosine_accuracy", "accuracy_band")
quick = settings(max_examples=60, deadline=None)


@st.composite
def pools(draw):
    """Ragged groups of small whole numbers, whose sums are exact in any order."""
    ids = draw(IDS)
    size = {"min_size": len(ids), "max_size": len(ids)}
    return {
        "problem_ids": ids,
        "products": draw(st.lists(GROUP, **size)),
        "pass_rates": draw(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), **size)),
    }


def ranked(pool, strategy="cosine", *, scale=1.0, **columns):
    request = ScoreRequest(run_id="r", policy_version=0, products_version=1, **{**pool, **columns})
    zeros = np.zeros(len(request.problem_ids))
    return score_products(request, strategy, scale, Evidence(zeros, zeros, None))


def by_id(scored, column="priorities"):
    return dict(zip(scored.ids, getattr(scored, column), strict=True))


@pytest.mark.parametrize("strategy", STRATEGIES)
@quick
@given(pools(), st.randoms(use_true_random=False))
def test_the_order_of_the_problems_leaves_no_trace(strategy, pool, random):
    places = list(range(len(pool["problem_ids"])))
    random.shuffle(places)
    mixed = {name: [column[i] for i in places] for name, column in pool.items()}
    first, other = (ranked(each, strategy, rollout_weights=True) for each in (pool, mixed))
    assert other.ids == first.ids
    assert other.priorities.tolist() == first.priorities.tolist()
    assert other.weights == pytest.approx(first.weights, abs=1e-12)
    for a, b in zip(first.rollout_weights, other.rollout_weights, strict=True):
        assert b == pytest.approx(a, abs=1e-12)


@quick
@given(pools(), st.randoms(use_true_random=False))
def test_nor_does_that_of_the_rollouts(pool, random):
    mixed = [random.sample(group, len(group)) for group in pool["products"]]
    first, other = ranked(pool), ranked(pool, products=mixed)
    assert other.ids == first.ids
    assert other.alignments.tolist() == first.alignments.tolist()
    np.testing.assert_allclose(other.errors, first.errors, atol=1e-9)


@quick
@given(pools(), st.sampled_from([2.0**-40, 0.5, 4.0, 2.0**40]))
def test_another_unit_of_the_gradients_changes_products_alone(pool, factor):
    scaled = [[x * factor for x in group] for group in pool["products"]]
    first = ranked(pool, rollout_weights=True)
    other = ranked(pool, products=scaled, scale=factor, rollout_weights=True)
    assert other.ids == first.ids
    assert other.alignments == pytest.approx(first.alignments * factor)
    assert other.weights.tolist() == first.weights.tolist()
    assert other.evidence.tolist() == first.evidence.tolist()
    np.testing.assert_allclose(other.errors, first.errors * factor)
    for a, b in zip(first.rollout_weights, other.rollout_weights, strict=True):
        assert b == pytest.approx(a)
    assert (first.noise is None) == (other.noise is None)
    if first.noise:
        assert other.noise.reliability == pytest.approx(first.noise.reliability)


@quick
@given(pools())
def test_products_and_alignments_are_the_sums(pool):
    sums = {i: sum(group) for i, group in zip(pool["problem_ids"], pool["products"], strict=True)}
    scored = ranked(pool)
    assert by_id(scored, "alignments") == sums
    assert scored.ids == sorted(sums, key=lambda i: (-sums[i], i))
    silent = {i for i, group in zip(pool["problem_ids"], pool["products"], strict=True) if not any(group)}
    assert {i for i, has in by_id(scored, "signal").items() if not has} == silent
    assert ((scored.weights >= 0) & (scored.weights <= 1)).all()


@quick
@given(pools(), st.data())
def test_what_is_rejected_leaves_the_others_alone(pool, data):
    count = len(pool["problem_ids"])
    bad = data.draw(st.integers(0, count - 1))
    broken = [list(group) for group in pool["products"]]
    broken[bad][0] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf, 1e31]))
    other = ranked(pool, products=broken, rollout_weights=True)
    assert [row.problem_id for row in other.rejected] == [pool["problem_ids"][bad]]
    if count > 1:
        rest = {name: [each for i, each in enumerate(column) if i != bad] for name, column in pool.items()}
        first = ranked(rest, rollout_weights=True)
        assert by_id(other) == by_id(first)
        assert by_id(other, "weights") == pytest.approx(by_id(first, "weights"))
        for a, b in zip(first.rollout_weights, other.rollout_weights, strict=True):
            assert b == pytest.approx(a)


def of(*groups):
    """A pool of problems a, b, c and so on."""
    return {"problem_ids": list("abcdefgh"[: len(groups)]), "products": groups, "pass_rates": [0.5] * len(groups)}


@quick
@given(pools(), st.sampled_from([2.0**-90, 1.0, 2.0**90]))
@example(of([1e15, -1.0], [3.0, 1.0], [0.25, 0.25], [-7.0, 0.5]), 1.0)  # a mean far from most
@example(of([1e15, 1e15], [3.0, 3.0], [1.0, 1.0], [0.0, 0.0]), 1.0)  # no errors
@example(of([2.0, 0.0], [0.0, 2.0], [3.0, -1.0], [1.0]), 1.0)  # all equal, one with an error that nothing tells
@example(of([1.0, 2.0]), 1.0)
def test_shrinkage_moves_towards_the_mean_of_those_with_a_signal(pool, unit):
    if max(map(len, pool["products"])) < 2:
        return
    pool = {**pool, "products": [[x * unit for x in group] for group in pool["products"]]}
    scored, plain = ranked(pool, "shrunken"), ranked(pool)
    before, after = by_id(plain, "alignments"), by_id(scored)
    signal = by_id(plain, "signal")
    known = [before[i] for i in before if signal[i]]
    mean = np.mean(known) if known else 0.0
    rounding = 4 * np.finfo(np.float64).eps * max(map(abs, before.values()))  # of two differences from the mean
    for problem_id, value in after.items():
        if signal[problem_id]:
            assert abs(value - mean) <= abs(before[problem_id] - mean) + rounding
            assert np.sign(value - mean) * np.sign(before[problem_id] - mean) >= 0  # rounding keeps order
        else:
            assert value == 0.0


@quick
@given(st.lists(st.integers(-9, 9).map(lambda x: [1e18 * x] * 2), min_size=3, max_size=9))
def test_what_is_known_without_error_is_not_shrunken(groups):
    pool = of(*groups[:6], [1.0, 1.0], [2.0, 2.0])  # nothing beside the others, and yet in order
    assert by_id(ranked(pool, "shrunken")) == by_id(ranked(pool), "alignments")


@quick
@given(pools(), st.data(), st.sampled_from(["exact", "head"]))
def test_norms_however_small_beside_rollouts_that_cancel_leave_numbers(pool, data, kind):
    """Of the request, and of a round's record: nothing that JSON has no word for."""
    size = st.floats(5e-324, 1e300)
    groups = [[*group, *(-x for x in group)] for group in pool["products"]]
    norms = [data.draw(size) for _ in groups]
    for strategy in ("shrunken", "cosine"):
        found = ranked(pool, strategy, products=groups, norms=norms, norms_kind=kind, rollout_weights=True)
        numbers = [found.priorities, found.errors, found.weights, found.evidence, *found.rollout_weights]
        assert all(np.isfinite(column).all() for column in numbers)
        if found.noise:
            told = (found.noise.alignment_variance, found.noise.rollout_variance, found.noise.reliability)
            assert np.isfinite(told).all()


def test_a_request_that_is_rejected_whole_is_ranked_by_any_rule():
    for strategy in ("shrunken", "cosine"):
        found = ranked(of([np.nan, 1.0], [np.inf, 2.0]), strategy, shrink_weights=True)
        assert (found.ids, [row.problem_id for row in found.rejected]) == ([], ["a", "b"])


def test_a_rejected_problem_says_nothing_of_the_errors_of_others():
    with pytest.raises(InvalidValue, match="each has one rollout"):
        ranked(of([np.nan, 1.0], [1.0], [2.0]), "shrunken")


@quick
@given(pools(), st.floats(1.0, 1e3))
def test_exact_norms_give_cosines(pool, stretch):
    norms = [stretch * abs(sum(group)) + 1e-3 for group in pool["products"]]
    scored = ranked(pool, norms=norms)
    assert (abs(scored.alignments) <= 1).all()
    wanted = {i: sum(g) / n for i, g, n in zip(pool["problem_ids"], pool["products"], norms, strict=True)}
    assert by_id(scored, "alignments") == pytest.approx(wanted)
    assert by_id(ranked(pool, "dot", norms=norms)) == by_id(ranked(pool, "dot"))

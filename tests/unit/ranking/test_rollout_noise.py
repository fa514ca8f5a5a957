"""Statistics of rollouts, held against numpy and against worlds whose truth is known."""

import numpy as np
import pytest

from gradalign import InvalidValue
from gradalign_scorer.ranking.reliability import (
    RolloutProducts,
    errors_over_norms,
    ranking_noise,
    rollout_weights,
    shrunken_alignments,
    with_norms,
)


class TestSums:
    def test_ragged_groups(self):
        groups = [[1.0, 2.0, 6.0], [5.0], [0.0, 0.0], [-1.0, 1.0]]
        found = RolloutProducts.of(groups)
        assert found.sums.tolist() == [9.0, 5.0, 0.0, 0.0]
        assert found.counts.tolist() == [3, 1, 2, 2]
        # Of a sum of n: the root of n times the sample variance.
        assert found.errors[0] == pytest.approx(np.sqrt(3 * np.var(groups[0], ddof=1)))
        assert np.isnan(found.errors[1])
        assert found.errors[2] == 0.0
        assert found.signal.tolist() == [True, True, False, True]

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e31, -2e30])
    def test_a_group_that_is_not_finite_leaves_the_others_alone(self, bad):
        found = RolloutProducts.of([[1.0, 2.0], [1.0, bad, 3.0], [4.0]])
        assert found.finite.tolist() == [True, False, True]
        assert found.sums.tolist() == [3.0, 0.0, 4.0]
        assert not found.signal[1]

    def test_a_sum_beyond_what_is_stored(self):
        assert RolloutProducts.of([[1e30, 1e30], [1.0]]).finite.tolist() == [False, True]


class TestNorms:
    def test_cosines_and_quotients(self):
        rollouts = RolloutProducts.of([[1.0, 1.0], [-3.0], [0.0]])
        norms = np.array([4.0, 2.9, 0.0])
        assert with_norms(rollouts, norms, "exact").tolist() == [0.5, -1.0, 0.0]  # within the tolerance, and clipped
        assert with_norms(rollouts, norms, "head") == pytest.approx([0.5, -3 / 2.9, 0.0])

    @pytest.mark.parametrize(("norm", "kind"), [(1.5, "exact"), (0.0, "exact"), (0.0, "head")])
    def test_a_product_that_disagrees_with_its_norm(self, norm, kind):
        with pytest.raises(InvalidValue, match=r"products\[1\] add up to 2 and norms\[1\] is"):
            with_norms(RolloutProducts.of([[1.0], [2.0]]), np.array([1.0, norm]), kind)

    @pytest.mark.parametrize("kind", ["exact", "head"])
    def test_rollouts_that_cancel_have_no_gradient(self, kind):
        same_text = [0.3, -0.1, -0.1, -0.1]
        assert sum(same_text) != 0
        rollouts = RolloutProducts.of([same_text, [1.0]])
        assert with_norms(rollouts, np.array([0.0, 2.0]), kind).tolist() == [0.0, 0.5]
        with pytest.raises(InvalidValue, match="expected"):
            with_norms(RolloutProducts.of([[0.3, -0.1, -0.1]]), np.array([0.0]), kind)

    def test_what_is_rejected_disagrees_with_nothing(self):
        assert with_norms(RolloutProducts.of([[np.nan], [1.0]]), np.array([0.0, 2.0]), "exact").tolist() == [0.0, 0.5]


def answered(rng, problems=300, group=8, answers=4, dim=60):
    """Draws groups of GRPO on short answers, of which many are alike: products along the first axis, and norms."""
    chances = rng.dirichlet(np.full(answers, 0.6), problems)  # the first answer is right
    scores = rng.standard_normal((problems, answers, dim))
    scores -= (chances[:, :, None] * scores).sum(axis=1, keepdims=True)

    def draw():
        products, norms = [], []
        for chance, score in zip(chances, scores, strict=True):
            said = rng.choice(answers, group, p=chance)
            rewards = (said == 0).astype(float)
            advantages = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-4)
            gradients = advantages[:, None] * score[said] / group
            products.append(gradients[:, 0].tolist())
            norms.append(np.linalg.norm(gradients.sum(axis=0)))
        return RolloutProducts.of(products), np.array(norms)

    return draw


class TestErrorsOverNorms:
    @pytest.mark.parametrize("seed", range(6))
    def test_the_ranking_is_as_reliable_as_another_set_of_rollouts_shows(self, seed):
        draw = answered(np.random.default_rng(seed))
        (rollouts, norms), (others, other_norms) = draw(), draw()
        cosines, again = with_norms(rollouts, norms, "exact"), with_norms(others, other_norms, "exact")
        found = errors_over_norms(rollouts, norms, cosines)
        told = ranking_noise(cosines, found).reliability
        assert told == pytest.approx(np.corrcoef(cosines, again)[0, 1], abs=0.1)
        apart = np.divide(rollouts.errors, norms, out=np.zeros(len(norms)), where=norms > 0)
        assert ranking_noise(cosines, apart).reliability < told - 0.05
        assert found == pytest.approx(apart * (found.max() / apart.max()))

    def test_no_error_grows(self):
        # Products of one size over norms of two: the quotients differ more than rollouts do.
        rollouts = RolloutProducts.of([[1.0, 1.1], [1.1, 0.9], [0.9, 1.0], [1.0, 1.0]])
        norms = np.array([2.0, 2.0, 20.0, 20.0])
        assert errors_over_norms(rollouts, norms, rollouts.sums / norms) == pytest.approx(rollouts.errors / norms)

    def test_what_is_not_known_stays_so(self):
        rollouts = RolloutProducts.of([[1.0], [2.0, np.nan], [0.0, 0.0], [1.0, 3.0]])
        norms = np.array([2.0, 1.0, 0.0, 8.0])
        found = errors_over_norms(rollouts, norms, with_norms(rollouts, norms, "exact"))
        assert np.isnan(found[0])
        assert found[2] == 0.0
        assert found[3] == pytest.approx(rollouts.errors[3] / 8)


def world(rng, problems, rollouts, noise):
    """Products of two independent sets of rollouts of problems of true product N(0, 1); [problems, rollouts] each.

    `noise` is the standard error of a sum. Errors have heavy tails and differ between problems, as in GRPO groups.
    """
    truth = rng.standard_normal(problems)
    scale = np.exp(0.5 * rng.standard_normal(problems))
    scale *= noise / np.sqrt(np.mean(scale**2))

    def draw():
        errors = rng.standard_t(5, (problems, rollouts)) / np.sqrt(5 / 3)
        return (truth / rollouts)[:, None] + scale[:, None] * errors / np.sqrt(rollouts)

    return truth, draw(), draw()


def grpo_world(rng, problems, rollouts, strength):
    """Products of two sets of GRPO groups: rewards less their mean, times derivatives that partly follow the reward."""
    rates = rng.uniform(0.1, 0.9, problems)
    slopes = strength * rng.standard_normal(problems)

    def draw():
        rewards = (rng.random((problems, rollouts)) < rates[:, None]).astype(float)
        derivatives = slopes[:, None] * (rewards - rates[:, None]) + rng.standard_normal((problems, rollouts))
        return (rewards - rewards.mean(axis=1, keepdims=True)) * derivatives / rollouts

    return draw(), draw()


def noise_of(products):
    found = RolloutProducts.of(products.tolist())
    return found, ranking_noise(found.sums, found.errors)


class TestReliability:
    @pytest.mark.parametrize("noise", [0.3, 1.0, 2.0, 5.0])
    @pytest.mark.parametrize("rollouts", [4, 16])
    def test_is_the_correlation_of_two_sets_of_rollouts(self, noise, rollouts):
        rng = np.random.default_rng(7)
        predicted, seen = [], []
        for _ in range(60):
            _, first, second = world(rng, 600, rollouts, noise)
            predicted.append(1 - noise_of(first)[1].rollout_variance / noise_of(first)[1].alignment_variance)
            seen.append(np.corrcoef(first.sum(axis=1), second.sum(axis=1))[0, 1])
        assert np.mean(seen) == pytest.approx(1 / (1 + noise**2), abs=0.04)
        assert np.mean(predicted) == pytest.approx(np.mean(seen), abs=0.04)

    @pytest.mark.parametrize("strength", [0.0, 0.5, 2.0])
    def test_holds_for_groups_whose_advantages_share_a_mean(self, strength):
        rng = np.random.default_rng(8)
        predicted, seen = [], []
        for _ in range(30):
            first, second = grpo_world(rng, 500, 8, strength)
            predicted.append(1 - noise_of(first)[1].rollout_variance / noise_of(first)[1].alignment_variance)
            seen.append(np.corrcoef(first.sum(axis=1), second.sum(axis=1))[0, 1])
        assert np.mean(predicted) == pytest.approx(np.mean(seen), abs=0.05)

    def test_without_any_signal_it_is_near_0_and_never_below(self):
        rng = np.random.default_rng(9)
        values = [noise_of(rng.standard_normal((512, 8)))[1].reliability for _ in range(50)]
        assert min(values) >= 0.0
        assert np.mean(values) < 0.05
        assert np.quantile(values, 0.95) < 0.15

    def test_needs_three_known_errors(self):
        errors = np.array([1.0, 2.0, np.nan, np.nan])
        assert ranking_noise(np.arange(4.0), errors) is None
        assert ranking_noise(np.arange(5.0), np.array([0.1, 0.1, 0.1, np.nan, np.nan])).reliability > 0.98
        assert ranking_noise(np.ones(4), np.zeros(4)).reliability == 0.0


class TestShrinkage:
    @pytest.mark.parametrize("noise", [0.5, 1.0, 2.0])
    def test_is_nearer_to_the_truth_and_ranks_no_worse(self, noise):
        rng = np.random.default_rng(10)
        raw_error = shrunken_error = raw_rank = shrunken_rank = 0.0
        for _ in range(30):
            truth, products, _ = world(rng, 300, 8, noise)
            found, _ = noise_of(products)
            better = shrunken_alignments(found.sums, found.errors, found.counts, found.signal)
            raw_error += np.mean((found.sums - truth) ** 2)
            shrunken_error += np.mean((better - truth) ** 2)
            raw_rank += np.corrcoef(found.sums, truth)[0, 1]
            shrunken_rank += np.corrcoef(better, truth)[0, 1]
        assert shrunken_error < 0.95 * raw_error
        assert shrunken_rank > raw_rank

    def test_an_uncertain_problem_stands_out_less(self):
        alignments = np.array([2.0, 2.0, -2.0, 0.5, -0.5, 0.0])
        errors = np.array([0.1, 2.0, 0.1, 0.1, 0.1, 0.0])
        signal = np.array([True] * 5 + [False])
        found = shrunken_alignments(alignments, errors, np.full(6, 8), signal)
        assert found[0] > found[1] > 0
        assert found[5] == 0.0
        mean = alignments[:5].mean()
        assert (np.abs(found - mean) <= np.abs(alignments - mean) + 1e-12)[:5].all()

    def test_pure_noise_is_not_ranked_by_name(self):
        rng = np.random.default_rng(11)
        found, noise = noise_of(rng.standard_normal((40, 2)))
        better = shrunken_alignments(found.sums, found.errors, found.counts, found.signal)
        assert noise.reliability < 0.5
        assert len(set(better)) == 40

    def test_one_rollout_is_less_certain_than_eight(self):
        alignments, counts = np.array([1.0, 1.0, -1.0, -1.0, 0.0]), np.array([8, 1, 8, 8, 8])
        errors = np.array([0.2, np.nan, 0.2, 0.2, 0.2])
        found = shrunken_alignments(alignments, errors, counts, np.ones(5, bool))
        assert found[0] > found[1] > 0

    def test_fewer_than_three_are_left_alone(self):
        alignments = np.array([1.0, -1.0])
        found = shrunken_alignments(alignments, np.ones(2), np.full(2, 4), np.ones(2, bool))
        assert found.tolist() == alignments.tolist()


class TestWeights:
    def test_the_rule(self):
        groups = [[0.4, -0.4, 0.1], [0.0, 0.0], [0.2]]
        rollouts = RolloutProducts.of(groups)
        alike = np.concatenate([np.array(groups[0]) * 3, groups[2]])
        wanted = np.clip(0.25 + alike / (2 * alike.std()), 0, 1)
        first, second, third = rollout_weights(rollouts, None)
        assert first == pytest.approx(wanted[:3])
        assert second.tolist() == [0.0, 0.0]
        assert third == pytest.approx(wanted[3:])

    def test_the_unit_does_not_matter(self):
        rng = np.random.default_rng(12)
        for factor in (1e-200, 1e-6, 1e20):
            products = rng.standard_normal((5, 4))
            one = rollout_weights(RolloutProducts.of(products.tolist()), None)
            other = rollout_weights(RolloutProducts.of((products * factor).tolist()), None)
            for a, b in zip(one, other, strict=True):
                assert b == pytest.approx(a)

    def test_a_group_of_long_gradients_does_not_drown_the_others(self):
        groups = [[1.0, -1.0], [100.0, -100.0]]
        long, short = rollout_weights(RolloutProducts.of(groups), np.array([10.0, 1000.0]))
        assert long == pytest.approx(short)

    def test_a_single_rollout_goes_by_its_sign(self):
        assert [w.tolist() for w in rollout_weights(RolloutProducts.of([[2.0]]), None)] == [[1.0]]
        assert [w.tolist() for w in rollout_weights(RolloutProducts.of([[-2.0]]), None)] == [[0.0]]

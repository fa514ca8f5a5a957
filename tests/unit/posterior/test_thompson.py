"""The chance that a group has a signal, and draws of success rates, against sums and moments computed here."""

import math

import numpy as np
import pytest

from gradalign_scorer.posterior.beliefs import Beliefs
from gradalign_scorer.posterior.thompson import drawn_rates, expected_signal


def beliefs_of(*counts):
    return Beliefs(np.array(counts, dtype=np.float64), np.zeros(len(counts)))


def signal_chance(rates, size):
    """Of groups that are neither all right nor all wrong, counted by their successes."""
    return sum(math.comb(size, k) * rates**k * (1 - rates) ** (size - k) for k in range(1, size))


@pytest.mark.parametrize("size", [2, 3, 8, 16])
def test_the_chance_falls_with_the_distance_from_one_half_whatever_the_size(size):
    """So that a draw may pick by the distance, as MoPPS does."""
    rates = np.random.default_rng(1).uniform(0.1, 0.9, 200)
    assert np.argsort(-signal_chance(rates, size)).tolist() == np.argsort(np.abs(rates - 0.5)).tolist()


def test_one_rollout_counts_for_two():
    beliefs = beliefs_of((3, 1), (0, 0))
    assert expected_signal(beliefs, 1).tolist() == expected_signal(beliefs, 2).tolist()
    assert expected_signal(beliefs, 2)[1] == pytest.approx(1 / 3)  # the mean of 2 p (1 - p)


@pytest.mark.parametrize("counts", [(0, 0), (4, 4), (0, 8), (3.5, 0.25), (40, 9)])
@pytest.mark.parametrize("size", [2, 8, 32])
def test_the_expected_chance_is_the_mean_under_the_belief(counts, size):
    p = (np.arange(200_000) + 0.5) / 200_000
    logs = counts[0] * np.log(p) + counts[1] * np.log1p(-p)
    density = np.exp(logs - logs.max())
    wanted = float((density * signal_chance(p, size)).sum() / density.sum())
    assert expected_signal(beliefs_of(counts), size)[0] == pytest.approx(wanted, abs=1e-6)


def test_many_rollouts_leave_the_chance_at_the_rate():
    found = expected_signal(beliefs_of((3e6, 1e6), (0, 1e7), (1e7, 0)), np.array([8, 8, 8]))
    assert found == pytest.approx(signal_chance(np.array([0.75, 0.0, 1.0]), 8), abs=1e-5)
    assert ((found >= 0) & (found < 1)).all()


def test_sizes_are_each_problems_own():
    beliefs = beliefs_of((2, 2), (2, 2))
    pair = expected_signal(beliefs, [2, 16])
    assert pair.tolist() == [expected_signal(beliefs, size)[0] for size in (2, 16)]
    assert pair[0] < pair[1]


def test_draws_have_the_moments_of_the_belief():
    """40,000 problems of one belief: the mean is within 6 of its standard errors, the variance within a twentieth."""
    count, (a, b) = 40_000, (3.0, 6.0)
    rates = drawn_rates([f"p{i}" for i in range(count)], beliefs_of(*[(a - 1, b - 1)] * count), (0, 1))
    variance = a * b / ((a + b) ** 2 * (a + b + 1))
    assert rates.mean() == pytest.approx(a / (a + b), abs=6 * math.sqrt(variance / count))
    assert rates.var() == pytest.approx(variance, rel=0.05)
    assert ((rates >= 0) & (rates <= 1)).all()


def test_no_problems_no_draws():
    assert drawn_rates([], Beliefs.none(0), (0, 0)).tolist() == []

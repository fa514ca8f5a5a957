"""Beliefs about success rates, against MoPPS' recursion written out, and what is stored of them."""

import struct

import numpy as np
import pytest

from gradalign_scorer.posterior.beliefs import Beliefs, observations, parameters


def test_nothing_known_is_the_uniform_distribution():
    beliefs = Beliefs.none(3)
    assert beliefs.alpha.tolist() == beliefs.beta.tolist() == [1.0] * 3
    assert beliefs.versions.tolist() == [-1.0] * 3


def test_a_group_is_its_successes_and_failures():
    found = observations([0.0, 0.25, 1.0, 0.3], [8, 4, 2, 1])
    assert found == pytest.approx(np.array([[0, 8], [1, 3], [2, 0], [0.3, 0.7]]))


@pytest.mark.parametrize("discount", [0.0, 0.5, 0.9, 1.0])
def test_the_recursion_of_mopps(discount):
    """alpha' = d alpha + (1 - d) alpha0 + s, beta' = d beta + (1 - d) beta0 + k - s, from alpha0 = beta0 = 1."""
    rng = np.random.default_rng(0)
    alpha, beta, beliefs = np.ones(5), np.ones(5), Beliefs.none(5)
    for _ in range(6):
        sizes = rng.integers(1, 9, 5)
        rates = rng.integers(0, sizes + 1) / sizes
        alpha = discount * alpha + (1 - discount) + sizes * rates
        beta = discount * beta + (1 - discount) + sizes * (1 - rates)
        beliefs = beliefs.observed(observations(rates, sizes), discount)
        assert beliefs.alpha == pytest.approx(alpha)
        assert beliefs.beta == pytest.approx(beta)


def test_rollouts_fade_by_half_lives_since_they_were_added_to():
    beliefs = Beliefs(np.array([[4.0, 12.0], [4.0, 12.0], [0.0, 0.0]]), np.array([10.0, 2.0, -1.0]))
    faded = beliefs.faded(10, 4.0)
    assert faded.alpha.tolist() == [5.0, 2.0, 1.0]
    assert faded.beta.tolist() == [13.0, 4.0, 1.0]
    assert beliefs.faded(0, 4.0).counts.tolist() == beliefs.counts.tolist()  # none is of the future


def test_records():
    record = struct.pack("<ddd", 3.5, 0.5, 7.0)
    beliefs = Beliefs.unpack([record, None])
    assert beliefs.counts.tolist() == [[3.5, 0.5], [0.0, 0.0]]
    assert beliefs.versions.tolist() == [7.0, -1.0]
    assert parameters(record) == [4.5, 1.5]
    assert parameters(None) is None
    assert len(Beliefs.unpack([]).alpha) == 0

"""Ridge regression from moments, against the closed form over all scores at once."""

import numpy as np
import pytest

from gradalign import Unavailable
from gradalign_scorer.ranking.predictor import PENALTY, Moments, Predictor, width_of

RNG = np.random.default_rng(0)


def scores(count, width, *, noise=0.1):
    """Features [count, width] and alignments [count] that depend on them linearly, but for noise."""
    features = RNG.standard_normal((count, width))
    return features, 0.2 + features @ np.linspace(-0.3, 0.3, width) + noise * RNG.standard_normal(count)


def closed_form(features, alignments):
    inputs = np.column_stack([np.ones(len(features)), features])
    penalty = PENALTY * np.diag([1e-6] + [1.0] * features.shape[1])
    precision = inputs.T @ inputs + penalty
    coefficients = np.linalg.solve(precision, inputs.T @ alignments)
    rest = ((alignments - inputs @ coefficients) ** 2).sum() + coefficients @ penalty @ coefficients
    return coefficients, np.linalg.inv(precision), np.sqrt(rest / len(alignments))


@pytest.mark.parametrize("width", [1, 16, 64])
def test_it_is_the_closed_form(width):
    features, alignments = scores(200, width)
    predictor = Predictor(Moments.of(features, alignments))
    coefficients, _, noise = closed_form(features, alignments)
    assert predictor.coefficients == pytest.approx(coefficients, rel=1e-8, abs=1e-12)
    assert predictor.noise == pytest.approx(noise, rel=1e-8)
    new = RNG.standard_normal((5, width))
    assert predictor.predict(new) == pytest.approx(coefficients[0] + new @ coefficients[1:], rel=1e-8)


def test_parts_add_up_to_the_whole():
    features, alignments = scores(90, 4)
    parts = [np.frombuffer(Moments.of(features[s], alignments[s]).pack()) for s in (slice(0, 20), slice(20, 90))]
    whole = Moments.of(features, alignments).pack()
    assert sum(parts) == pytest.approx(np.frombuffer(whole), rel=1e-12)


@pytest.mark.parametrize("width", range(1, 65))
def test_packed_moments_are_read_back(width):
    moments = Moments.of(*scores(7, width))
    packed = moments.pack()
    assert width_of(len(packed)) == width
    back = Moments.unpack(packed)
    assert (back.width, back.count, back.squares) == (width, 7.0, moments.squares)
    assert np.array_equal(back.products, moments.products)
    assert back.gram == pytest.approx(moments.gram, rel=1e-15)


@pytest.mark.parametrize("damage", [lambda p: p[:-1], lambda p: p[:-8], lambda p: b"", lambda p: p[:-8] + b"\xff" * 8])
def test_damaged_moments_are_told(damage):
    with pytest.raises(Unavailable, match="moments of the features are damaged"):
        Moments.unpack(damage(Moments.of(*scores(7, 3)).pack()))


def test_draws_have_the_posterior_s_mean_and_spread():
    features, alignments = scores(60, 2, noise=0.5)
    predictor = Predictor(Moments.of(features, alignments))
    coefficients, covariance, noise = closed_form(features, alignments)
    at = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    drawn = np.array([predictor.draw(at, np.random.default_rng(seed)) for seed in range(4000)])
    inputs = np.column_stack([np.ones(3), at])
    assert drawn.mean(axis=0) == pytest.approx(inputs @ coefficients, abs=0.02)
    wanted = noise**2 * inputs @ covariance @ inputs.T
    assert np.cov(drawn.T) == pytest.approx(wanted, rel=0.15, abs=0.002)


def test_the_mean_is_not_shrunk_and_the_slopes_are():
    constant = Predictor(Moments.of(np.zeros((4, 3)), np.full(4, 0.5)))
    assert constant.coefficients == pytest.approx([0.5, 0, 0, 0], abs=1e-6)
    one = Predictor(Moments.of(np.array([[1.0], [-1.0]]), np.array([0.3, -0.3])))
    assert one.coefficients == pytest.approx([0, 0.6 / (2 + PENALTY)])


def test_features_that_say_the_same_do_no_harm():
    column = RNG.standard_normal((50, 1)) * 1000
    predictor = Predictor(Moments.of(np.repeat(column, 8, axis=1), column[:, 0] / 2000))
    assert predictor.predict(np.full((1, 8), 1000.0)) == pytest.approx([0.5], rel=1e-3)

"""The predicted correlation of sketched with exact alignments, against what real sketches give."""

import math

import numpy as np
import pytest

from gradalign.wire.countsketch import axis_hashes
from gradalign.wire.projection import MAX_DIM
from gradalign_scorer.ranking.reliability import Reliability, reliability

SHAPES = {"up": (60, 80), "down": (80, 60), "bias": (1, 400)}


def sketched(gradients, dim, seed):
    """The sketches [n, dim] of gradients [n, parameters]: the reference's hashes, all rows at a time."""
    buckets, signs = [], []
    for name, (rows, cols) in SHAPES.items():
        row, col = axis_hashes(seed, name, "row", rows, dim), axis_hashes(seed, name, "col", cols, dim)
        buckets.append(((row[0][:, None] + col[0][None, :]) % dim).ravel())
        signs.append((row[1][:, None] * col[1][None, :]).ravel())
    place, sign = np.concatenate(buckets), np.concatenate(signs)
    return np.stack([np.bincount(place, weights=g * sign, minlength=dim) for g in gradients])


def cosines(rows, vector):
    return rows @ vector / np.linalg.norm(rows, axis=1) / np.linalg.norm(vector)


@pytest.mark.parametrize("spread", [0.05, 0.1])
@pytest.mark.parametrize("dim", [256, 1024, 4096])
def test_predicted_is_what_real_sketches_give(dim, spread):
    """Averaged over sketches: a single one's measured correlation has an error of its own."""
    rng = np.random.default_rng(dim)
    size = sum(rows * cols for rows, cols in SHAPES.values())
    vector = rng.standard_normal(size) / math.sqrt(size)
    predicted, measured = [], []
    for seed in range(6):
        exact = rng.normal(0.02, spread, 300)
        gradients = exact[:, None] * vector + rng.standard_normal((300, size)) / math.sqrt(size)
        gradients *= rng.lognormal(0, 1, (300, 1))
        both = sketched(np.vstack([vector, gradients]), dim, seed)
        alignments = cosines(both[1:], both[0])
        predicted.append(reliability(alignments, dim).value)
        measured.append(np.corrcoef(alignments, cosines(gradients, vector))[0, 1])
    assert np.mean(predicted) == pytest.approx(np.mean(measured), abs=0.02)


def spread_like(sigma_square, count=1000):
    """Alignments whose variance is sigma_square exactly."""
    values = np.linspace(-1, 1, count)
    return values * math.sqrt(sigma_square / np.var(values, ddof=1))


@pytest.mark.parametrize("dim", [1024, 8192, 131_072])
def test_the_formula(dim):
    result = reliability(spread_like(0.09**2 + 1 / dim), dim)
    assert result.value == pytest.approx(1 / math.sqrt(1 + 1 / (dim * 0.09**2)))


def test_advice_where_it_is_low():
    dim, sigma_square = 1024, 0.02**2
    result = reliability(spread_like(sigma_square + 1 / dim), dim)
    assert result.value < 0.9
    assert result.advised_dim == 32768
    # The dim advised reaches 0.95, and half of it does not.
    for factor, enough in ((1, True), (0.5, False)):
        there = result.advised_dim * factor
        assert (reliability(spread_like(sigma_square + 1 / there), there).value >= 0.95) is enough


@pytest.mark.parametrize("dim", [1, 64, 256, 4096, 131_072, MAX_DIM])
@pytest.mark.parametrize("signal", [1e-9, 1e-6, 1e-3, 0.05, 0.3])
def test_advice_is_a_dim_that_is_allowed_and_larger(dim, signal):
    result = reliability(spread_like(signal + 1 / dim), dim)
    assert 0 <= result.value <= 1
    if result.value >= 0.9:
        assert result.advised_dim is None
    if result.advised_dim is not None:
        assert dim < result.advised_dim <= MAX_DIM
        assert result.advised_dim & (result.advised_dim - 1) == 0


@pytest.mark.parametrize("variance", [0.0, 0.5, 1.0])
def test_a_spread_that_the_sketchs_own_error_explains(variance):
    assert reliability(spread_like(variance / 1024), 1024) == Reliability(0.0)


def test_no_dim_allowed_would_do():
    result = reliability(spread_like(1e-7 + 1 / 1024), 1024)
    assert 0 < result.value < 0.02
    assert result.advised_dim is None


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_to_tell(count):
    assert reliability(np.linspace(0, 0.5, count), 1024) is None


def test_three_are_enough():
    assert reliability(np.array([-0.5, 0.0, 0.5]), 1024).value > 0.99

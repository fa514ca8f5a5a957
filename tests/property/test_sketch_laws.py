"""The laws of the sketch: linear, unbiased in inner products, independent of sharding and of order."""

from itertools import pairwise

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradalign.sketch import LocalGradient, Sketcher
from gradalign.sketch.hashing.matrix import add_matrix
from gradalign.sketch.kernels.tables import HashTable
from gradalign.wire.countsketch import axis_hashes, matrix_shape, sketch_gradients

SHAPES = st.lists(st.integers(1, 9), min_size=0, max_size=4).map(tuple)
DIMS = st.integers(1, 300)
SEEDS = st.integers(0, 2**53 - 1)
quick = settings(max_examples=60, deadline=None)


def draw_gradient(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed % 2**31), dtype=torch.float64)


def sketch(gradient, dim, seed, name="weight"):
    total = torch.zeros(dim, dtype=torch.float64)
    table = HashTable.of(name, gradient.shape, dim=dim, seed=seed, device=total.device, dtype=total.dtype)
    add_matrix(total, gradient, table)
    return total


@quick
@given(SHAPES, DIMS, SEEDS, st.floats(-8, 8), st.floats(-8, 8))
def test_linear(shape, dim, seed, a, b):
    x, y = draw_gradient(shape, seed), draw_gradient(shape, seed + 1)
    torch.testing.assert_close(
        sketch(a * x + b * y, dim, seed), a * sketch(x, dim, seed) + b * sketch(y, dim, seed), rtol=0, atol=1e-10
    )


@quick
@given(SHAPES, DIMS, SEEDS)
def test_equals_the_reference(shape, dim, seed):
    x = draw_gradient(shape, seed)
    reference = sketch_gradients({"weight": x.numpy()}, dim=dim, seed=seed)
    np.testing.assert_allclose(sketch(x, dim, seed).numpy(), reference, rtol=0, atol=1e-10)


@quick
@given(SHAPES, DIMS, SEEDS, st.data())
def test_independent_of_sharding(shape, dim, seed, data):
    """Any grid of blocks, each sketched with its global offsets, sums to the sketch of the whole."""
    x = draw_gradient(shape, seed)
    rows, cols = matrix_shape(tuple(shape))
    matrix = x.reshape(rows, cols)
    cuts = [
        [0, *sorted(data.draw(st.lists(st.integers(0, count), max_size=3), label=side)), count]
        for side, count in (("row cuts", rows), ("column cuts", cols))
    ]
    table = HashTable.of("weight", shape, dim=dim, seed=seed, device=x.device, dtype=x.dtype)
    total = torch.zeros(dim, dtype=torch.float64)
    for top, bottom in zip(cuts[0], cuts[0][1:], strict=False):
        for left, right in zip(cuts[1], cuts[1][1:], strict=False):
            part = (slice(top, bottom), slice(left, right))
            add_matrix(total, matrix[part], table.block(*part))
    torch.testing.assert_close(total, sketch(x, dim, seed), rtol=0, atol=1e-10)


@quick
@given(SHAPES, DIMS, SEEDS, st.data())
def test_independent_of_how_parts_are_cut(shape, dim, seed, data):
    """Runs of the flattened parameter, and blocks of its leading axis, at their offsets sum to the sketch of the whole."""
    x = draw_gradient(shape, seed)
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    sketcher = Sketcher(model, dim=dim, seed=seed, dtype=torch.float64)
    cuts = [0, *sorted(data.draw(st.lists(st.integers(0, x.numel()), max_size=4))), x.numel()]
    runs = [LocalGradient("weight", shape, a, x.flatten()[a:b]) for a, b in pairwise(cuts)]
    torch.testing.assert_close(sketcher.from_local_grads(runs), sketch(x, dim, seed), rtol=0, atol=1e-10)
    for axis in range(len(shape)):
        at = data.draw(st.integers(0, shape[axis]))
        halves = x.split([at, shape[axis] - at], axis)
        offsets = [tuple(start * (i == axis) for i in range(len(shape))) for start in (0, at)]
        parts = [LocalGradient("weight", shape, o, h) for o, h in zip(offsets, halves, strict=True)]
        torch.testing.assert_close(sketcher.from_local_grads(parts), sketch(x, dim, seed), rtol=0, atol=1e-10)


@quick
@given(st.integers(0, 500), st.integers(1, 50), DIMS, SEEDS)
def test_hashes_of_a_shard_are_those_of_the_whole(start, count, dim, seed):
    buckets, signs = axis_hashes(seed, "weight", "row", start + count, dim)
    shard = axis_hashes(seed, "weight", "row", count, dim, start=start)
    assert shard[0].tolist() == buckets[start:].tolist()
    assert shard[1].tolist() == signs[start:].tolist()


@quick
@given(st.permutations(["a", "b", "c", "d"]), DIMS, SEEDS)
def test_independent_of_the_order_of_parameters(order, dim, seed):
    def model(names):
        made = nn.Module()
        for name in names:
            weight = nn.Parameter(torch.zeros(3, 5, dtype=torch.float64))
            weight.grad = draw_gradient((3, 5), seed + ord(name))
            made.register_parameter(name, weight)
        return made

    one, other = (Sketcher(model(n), dim=dim, seed=seed, dtype=torch.float64) for n in ("abcd", order))
    assert one.projection == other.projection
    torch.testing.assert_close(one.from_grads(), other.from_grads(), rtol=0, atol=1e-10)


def test_inner_products_are_unbiased_and_as_exact_as_promised():
    """Over 2,000 seeds the mean of <s(x), s(y)> is within 4 standard errors of <x, y>, and the error of a cosine within
    10% of (1 - c^2)/sqrt(k) at c = 0.6. A biased mean means signs of rows and columns that are not independent; a larger
    error means buckets that are not uniform."""
    seeds, dim = 2000, 256
    x = draw_gradient((24, 40), 1)
    y = draw_gradient((24, 40), 2)
    x, y = x / x.norm(), y - (x * y).sum() / x.norm() ** 2 * x
    y = 0.6 * x + 0.8 * y / y.norm()
    inner, cosines = [], []
    for seed in range(seeds):
        a, b = sketch(x, dim, seed), sketch(y, dim, seed)
        inner.append(float(a @ b))
        cosines.append(float(a @ b / (a.norm() * b.norm())))
    error = np.std(inner) / np.sqrt(seeds)
    assert abs(np.mean(inner) - 0.6) < 4 * error
    assert abs(np.std(cosines) / ((1 - 0.36) / np.sqrt(dim)) - 1) < 0.1

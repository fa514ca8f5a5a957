"""One pass over the sketches: products, norms and sums against numpy in float64, whatever the numbers and the cutting."""

import numpy as np
import pytest
import torch
from ranking_kit import CPU, matrix, rows_of, unit

from gradalign import SketchMatrix
from gradalign_scorer.ranking.alignment import SketchRows, gram, products, weighted_sum

RNG = np.random.default_rng(0)
DTYPES = ("float16", "bfloat16", "float32", "int8")
# Smallest and largest of each dtype, and what a gradient may be of: far beyond where its square leaves float32.
MAGNITUDES = {
    "float16": (6e-8, 6.1e-5, 1.0, 65504 / 8),
    "bfloat16": (1e-38, 1e-30, 1.0, 1e30, 3e37),
    "float32": (1e-44, 1e-38, 1e-30, 1e-22, 1e-20, 1e-13, 1e-11, 1.0, 1e17, 1e19, 1e30, 1e37),
    "int8": (1e-44, 1e-38, 1e-30, 1e-11, 1.0, 1e17, 1e30, 3.4e38),
}


def float64(rows):
    """What the wire carries of the rows, exactly."""
    return np.vstack([m.numpy().astype(np.float64) for m in rows.matrices])


def check(rows, vector, result):
    wanted = float64(rows)
    norms = np.linalg.norm(wanted, axis=1)
    dots = wanted @ vector.double().numpy()
    assert result.finite.all()
    assert result.norms == pytest.approx(norms, rel=1e-5)
    assert np.abs(result.dots - dots).max(initial=0) <= 1e-5 * norms.max(initial=0)
    # Each row's error is of that row's own size, not of its neighbours'.
    relative = np.abs(result.dots - dots)[norms > 0] / norms[norms > 0]
    assert relative.max(initial=0) < 1e-5
    cosines = np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0)
    assert result.cosines() == pytest.approx(cosines, abs=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 15, 16, 17, 127, 128, 129, 300])
@pytest.mark.parametrize("dim", [1, 2, 31, 1000])
def test_blocks_that_do_not_divide_evenly(dtype, count, dim):
    rows, vector = rows_of(RNG.standard_normal((count, dim)), dtype=dtype), unit(RNG.standard_normal(dim))
    check(rows, vector, products(rows, vector, CPU))


@pytest.mark.parametrize("dtype", DTYPES)
def test_sketches_larger_than_a_block(dtype):
    """At dim 131,072 a block holds fewer rows than 16, which it then holds all the same."""
    rows, vector = rows_of(RNG.standard_normal((21, 131_072)), dtype=dtype), unit(RNG.standard_normal(131_072))
    check(rows, vector, products(rows, vector, CPU))


def test_matrices_of_several_dtypes_are_one_pool():
    parts = [RNG.standard_normal((n, 40)) for n in (3, 130, 1, 17, 20)]
    rows = SketchRows([matrix(part, dtype) for part, dtype in zip(parts, (*DTYPES, "float16"), strict=True)])
    vector = unit(RNG.standard_normal(40))
    assert (len(rows), rows.dim) == (171, 40)
    check(rows, vector, products(rows, vector, CPU))


@pytest.mark.parametrize(("dtype", "size"), [(d, size) for d in DTYPES for size in MAGNITUDES[d]])
def test_any_magnitude(dtype, size):
    rows, vector = rows_of(size * RNG.uniform(-1, 1, (20, 33)), dtype=dtype), unit(RNG.standard_normal(33))
    check(rows, vector, products(rows, vector, CPU))


def test_magnitudes_side_by_side():
    sizes = np.repeat([1e-44, 1e-30, 1e-12, 1.0, 1e18, 1e30, 3e38], 30)[RNG.permutation(210)]
    rows, vector = rows_of(sizes[:, None] * RNG.uniform(-1, 1, (210, 50))), unit(RNG.standard_normal(50))
    check(rows, vector, products(rows, vector, CPU))


@pytest.mark.parametrize(
    ("dtype", "largest"), [("float16", 65504.0), ("bfloat16", 3.3895e38), ("float32", 3.4028e38), ("int8", 3.4028e38)]
)
def test_rows_of_the_largest_number(dtype, largest):
    rows, vector = rows_of(np.full((3, 257), largest), dtype=dtype), unit(np.ones(257))
    result = products(rows, vector, CPU)
    check(rows, vector, result)
    assert result.cosines() == pytest.approx([1.0] * 3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (16, 3), (40, 39)])
def test_a_row_that_is_not_finite_is_marked_and_harms_no_other(dtype, value, place):
    sketches = RNG.standard_normal((41, 40))
    vector = unit(RNG.standard_normal(40))
    clean = products(rows_of(sketches, dtype=dtype), vector, CPU)
    sketches[place] = value
    result = products(rows_of(sketches, dtype=dtype), vector, CPU)
    others = np.arange(41) != place[0]
    assert result.finite.tolist() == others.tolist()
    assert result.signal.tolist() == others.tolist()
    assert result.dots[others].tolist() == clean.dots[others].tolist()
    assert result.norms[others].tolist() == clean.norms[others].tolist()
    assert (result.dots[~others], result.norms[~others], result.cosines()[~others]) == (0, 0, 0)


@pytest.mark.parametrize("place", [(0, 0), (15, 39), (16, 3), (40, 39)])
def test_a_single_minus_128_leaves_its_row_out(place):
    whole = RNG.integers(-127, 128, (41, 40)).astype(np.int8)
    whole[7] = -127
    whole[place] = -128
    sent = SketchMatrix(memoryview(whole).cast("B"), 41, 40, "int8", tuple(RNG.uniform(0.5, 2, 41)))
    result = products(SketchRows([sent]), unit(np.ones(40)), CPU)
    assert np.flatnonzero(~result.finite).tolist() == [place[0]]
    assert (result.dots[place[0]], result.norms[place[0]]) == (0, 0)


def test_whatever_a_scale_of_0_multiplies_is_zero():
    sent = SketchMatrix(memoryview(np.ones((3, 8), np.int8)).cast("B"), 3, 8, "int8", (1.0, 0.0, 2.0))
    result = products(SketchRows([sent]), unit(np.ones(8)), CPU)
    assert result.signal.tolist() == [True, False, True]
    assert result.cosines() == pytest.approx([1.0, 0.0, 1.0])
    assert result.norms == pytest.approx(np.sqrt(8) * np.array([1, 0, 2]))


def test_zero_rows_have_no_signal():
    sketches = RNG.standard_normal((5, 8))
    sketches[[1, 4]] = 0
    sketches[4, 0] = -0.0
    result = products(rows_of(sketches), unit(np.ones(8)), CPU)
    assert result.signal.tolist() == [True, False, True, True, False]
    assert result.cosines()[[1, 4]].tolist() == [0.0, 0.0]
    assert result.finite.all()


def test_without_a_vector_there_are_norms_alone():
    rows = rows_of(RNG.standard_normal((20, 30)), np.zeros((1, 30)), np.full((1, 30), 1e30))
    result = products(rows, None, CPU)
    assert result.norms == pytest.approx(np.linalg.norm(float64(rows), axis=1))
    assert not result.dots.any()


@pytest.mark.parametrize("dim", [3, 64, 1001])
def test_a_rows_result_does_not_depend_on_where_it_stands(dim):
    row, vector = RNG.standard_normal((1, dim)), unit(RNG.standard_normal(dim))
    sketches = RNG.standard_normal((150, dim))
    places = [0, 1, 7, 16, 127, 128, 149]
    sketches[places] = row
    result = products(rows_of(sketches), vector, CPU)
    assert len({(result.dots[i], result.norms[i]) for i in places}) == 1
    cut = products(rows_of(sketches[:40], sketches[40:]), vector, CPU)
    assert cut.dots.tolist() == result.dots.tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_sketches_are_read_where_they_lie(dtype):
    """A misaligned view is copied and read right; memory is never written to."""
    whole = matrix(RNG.standard_normal((9, 12)), dtype)
    vector = unit(np.ones(12))
    wanted = products(SketchRows([whole]), vector, CPU).dots.tolist()
    for offset in range(5):
        held = bytearray(offset) + bytearray(whole.data)
        for data in (memoryview(held)[offset:], memoryview(bytes(held))[offset:]):
            moved = SketchMatrix(data, 9, 12, dtype, whole.scales)
            assert products(SketchRows([moved]), vector, CPU).dots.tolist() == wanted
        assert bytes(held[offset:]) == bytes(whole.data)


class TestSums:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("count", [1, 17, 129])
    def test_weighted(self, dtype, count):
        rows, weights = rows_of(RNG.standard_normal((count, 50)), dtype=dtype), RNG.uniform(0, 1, count)
        result = weighted_sum(rows, weights, CPU)
        assert result.dtype == torch.float32
        assert result.numpy() == pytest.approx(weights @ float64(rows), abs=1e-5)

    def test_rows_of_weight_0_may_hold_anything(self):
        sketches = RNG.standard_normal((5, 8))
        sketches[2], sketches[3] = np.nan, np.inf
        weights = np.array([1.0, 2.0, 0.0, 0.0, 3.0])
        wanted = sketches[[0, 1, 4]].T @ [1, 2, 3]
        assert weighted_sum(rows_of(sketches), weights, CPU).numpy() == pytest.approx(wanted, rel=1e-5, abs=1e-5)

    @pytest.mark.parametrize("size", [1e-44, 1e-30, 1e30, 1e38])
    def test_only_the_product_must_fit(self, size):
        rows = rows_of(size * RNG.uniform(-1, 1, (6, 9)))
        weights = np.full(6, 1 / size)
        assert weighted_sum(rows, weights, CPU).numpy() == pytest.approx(weights @ float64(rows), rel=1e-5, abs=1e-6)

    def test_the_order_of_the_rows_does_not_matter(self):
        """So that learnalign ranks a pool alike however it was shuffled."""
        sketches = RNG.standard_normal((700, 60)) * RNG.lognormal(0, 3, (700, 1))
        weights = RNG.uniform(0, 1, 700)
        first = weighted_sum(rows_of(sketches), weights, CPU)
        for _ in range(5):
            order = RNG.permutation(700)
            assert torch.equal(weighted_sum(rows_of(sketches[order]), weights[order], CPU), first)


class TestGram:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(("count", "dim"), [(1, 1), (7, 2048), (130, 2049), (20, 5000)])
    def test_products_of_unit_rows(self, dtype, count, dim):
        rows = rows_of(RNG.standard_normal((count, dim)), dtype=dtype)
        units = float64(rows) / np.linalg.norm(float64(rows), axis=1, keepdims=True)
        result = gram(rows, 1 / np.linalg.norm(float64(rows), axis=1), CPU)
        assert np.abs(result - units @ units.T).max() < 1e-5

    @pytest.mark.parametrize("size", [1e-44, 1e-30, 1e30])
    def test_any_magnitude(self, size):
        rows = rows_of(size * RNG.uniform(-1, 1, (6, 40)), RNG.standard_normal((6, 40)))
        units = float64(rows) / np.linalg.norm(float64(rows), axis=1, keepdims=True)
        result = gram(rows, 1 / np.linalg.norm(float64(rows), axis=1), CPU)
        assert np.abs(result - units @ units.T).max() < 1e-5

    def test_rows_of_scale_0_count_as_zero(self):
        sketches = RNG.standard_normal((4, 8))
        sketches[1] = np.nan
        result = gram(rows_of(sketches), np.array([1.0, 0.0, 1.0, 0.0]), CPU)
        assert not result[[1, 3]].any()
        assert not result[:, [1, 3]].any()
        assert np.isfinite(result).all()

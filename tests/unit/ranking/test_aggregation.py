"""The validation gradient: three ways to add, against numpy; coherence; sums that are nothing."""

import numpy as np
import pytest
from ranking_kit import CPU, matrix, rows_of

from gradalign import InvalidValue
from gradalign_scorer.ranking.aggregation import aggregate, decayed, pooled_weights
from gradalign_scorer.ranking.alignment import SketchRows, products

RNG = np.random.default_rng(0)
SKETCHES = RNG.standard_normal((20, 64)) * RNG.lognormal(0, 1, (20, 1))
TOKENS = RNG.integers(1, 2000, 20).tolist()
KINDS = ("pooled", "mean", "normalized")
REFERENCE = {
    "pooled": lambda rows: np.array(TOKENS[: len(rows)]) @ rows,
    "mean": lambda rows: rows.mean(axis=0),
    "normalized": lambda rows: (rows / np.linalg.norm(rows, axis=1, keepdims=True)).sum(axis=0),
}


def direction(vector):
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "int8"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_sum_that_its_name_says(kind, dtype):
    rows = rows_of(SKETCHES, dtype=dtype)
    carried = rows.matrices[0].numpy().astype(np.float64)
    result = aggregate(rows, kind, TOKENS, CPU)
    assert result.vector.numpy() == pytest.approx(direction(REFERENCE[kind](carried)), abs=1e-6)
    assert np.linalg.norm(result.vector.double()) == pytest.approx(1, abs=1e-6)
    assert (result.used.all(), result.finite.all()) == (True, True)


def test_pooled_without_tokens_is_the_mean():
    pooled, mean = (aggregate(rows_of(SKETCHES), kind, None, CPU) for kind in ("pooled", "mean"))
    assert pooled.vector.tolist() == mean.vector.tolist()


def test_the_mean_does_not_mind_tokens():
    with_tokens, without = (aggregate(rows_of(SKETCHES), "mean", tokens, CPU) for tokens in (TOKENS, None))
    assert with_tokens.vector.tolist() == without.vector.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_a_signal_are_left_out(kind):
    sketches, rest = SKETCHES.copy(), np.delete(SKETCHES, [2, 5, 6], axis=0)
    sketches[2], sketches[5, 3], sketches[6] = 0, np.nan, np.inf
    tokens = np.delete(TOKENS, [2, 5, 6]).tolist()
    result, alone = aggregate(rows_of(sketches), kind, TOKENS, CPU), aggregate(rows_of(rest), kind, tokens, CPU)
    assert np.flatnonzero(~result.used).tolist() == [2, 5, 6]
    assert np.flatnonzero(~result.finite).tolist() == [5, 6]
    assert result.vector.numpy() == pytest.approx(alone.vector.numpy(), abs=1e-6)
    assert result.coherence == pytest.approx(alone.coherence)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pool_may_lie_in_several_matrices(kind):
    parts = SketchRows([matrix(SKETCHES[:7]), matrix(SKETCHES[7:8]), matrix(SKETCHES[8:])])
    result, whole = aggregate(parts, kind, TOKENS, CPU), aggregate(rows_of(SKETCHES), kind, TOKENS, CPU)
    assert result.vector.tolist() == whole.vector.tolist()
    assert result.coherence == whole.coherence


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1e-40, 1e-30, 1e30, 1e37])
def test_any_magnitude(kind, size):
    unit, scaled = (aggregate(rows_of(SKETCHES * s), kind, TOKENS, CPU) for s in (1.0, size))
    # 1e-40 is a subnormal, of four digits.
    assert scaled.vector.numpy() == pytest.approx(unit.vector.numpy(), abs=1e-3 if size < 1e-38 else 1e-6)
    assert scaled.coherence == pytest.approx(unit.coherence, abs=1e-3)


def test_normalized_is_the_only_one_that_ignores_lengths():
    lengths = np.repeat([1e-20, 1e20], 10)[:, None]
    sketches = SKETCHES / np.linalg.norm(SKETCHES, axis=1, keepdims=True) * lengths
    result = aggregate(rows_of(sketches), "normalized", None, CPU).vector.numpy()
    assert result == pytest.approx(direction((sketches / lengths).sum(axis=0)), abs=1e-6)
    result = aggregate(rows_of(sketches), "mean", None, CPU).vector.numpy()
    assert result == pytest.approx(direction(sketches[10:].sum(axis=0)), abs=1e-6)


class TestCoherence:
    @pytest.mark.parametrize("kind", KINDS)
    def test_1_where_all_agree_whatever_their_lengths(self, kind):
        sketches = RNG.lognormal(0, 2, (20, 1)) * RNG.standard_normal(64)
        assert aggregate(rows_of(sketches), kind, TOKENS, CPU).coherence == pytest.approx(1, abs=1e-6)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("count", [4, 25, 100])
    def test_one_over_the_root_of_n_where_they_share_nothing(self, kind, count):
        lengths = RNG.lognormal(0, 1, (count, 1))
        orthogonal = aggregate(rows_of(np.eye(count) * lengths), kind, None, CPU)
        assert orthogonal.coherence == pytest.approx(count**-0.5, rel=1e-5)
        random = aggregate(rows_of(RNG.standard_normal((count, 20_000)) * lengths), kind, None, CPU)
        assert random.coherence == pytest.approx(count**-0.5, rel=0.1)

    def test_it_is_the_norm_of_the_mean_unit_row(self):
        units = SKETCHES / np.linalg.norm(SKETCHES, axis=1, keepdims=True)
        wanted = np.linalg.norm(units.mean(axis=0))
        assert aggregate(rows_of(SKETCHES), "pooled", TOKENS, CPU).coherence == pytest.approx(wanted, rel=1e-5)

    def test_of_a_single_problem(self):
        assert aggregate(rows_of(SKETCHES[:1]), "pooled", None, CPU).coherence == pytest.approx(1, abs=1e-6)

    def test_never_above_1(self):
        for count in range(1, 60):
            assert aggregate(rows_of(np.tile(SKETCHES[0], (count, 1))), "mean", None, CPU).coherence <= 1


class TestRefusals:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
    def test_rows_that_cancel(self, kind, size):
        sketches = np.vstack([SKETCHES, -SKETCHES]) * size
        with pytest.raises(InvalidValue, match="cancel to zero") as caught:
            aggregate(rows_of(sketches), kind, TOKENS + TOKENS, CPU)
        assert caught.value.param == "sketches"

    @pytest.mark.parametrize("kind", KINDS)
    def test_rows_that_cancel_up_to_rounding(self, kind):
        a, b = SKETCHES[0], SKETCHES[1]
        with pytest.raises(InvalidValue, match="cancel to zero"):
            aggregate(rows_of([direction(a), direction(b), -direction(a) - 1e-9, -direction(b)]), kind, None, CPU)

    def test_rows_that_nearly_cancel_still_say_something(self):
        result = aggregate(rows_of([SKETCHES[0], 1e-3 * SKETCHES[1] - SKETCHES[0]]), "mean", None, CPU)
        assert result.vector.numpy() == pytest.approx(direction(SKETCHES[1]), abs=1e-3)

    def test_pooled_where_no_problem_has_tokens(self):
        with pytest.raises(InvalidValue, match="problems of 0 tokens count for nothing"):
            aggregate(rows_of(SKETCHES), "pooled", [0] * 20, CPU)
        assert aggregate(rows_of(SKETCHES), "mean", [0] * 20, CPU).used.all()

    @pytest.mark.parametrize(("fill", "bad"), [(0.0, 0), (np.nan, 3), (np.inf, 3)])
    @pytest.mark.parametrize("kind", KINDS)
    def test_no_signal_at_all(self, kind, fill, bad):
        with pytest.raises(InvalidValue, match=rf"none of the 3 .*\({bad} hold NaN or Inf") as caught:
            aggregate(rows_of(np.full((3, 8), fill)), kind, None, CPU)
        assert caught.value.param == "sketches"


class TestPooledWeights:
    def test_by_tokens_with_the_longest_weighted_row_at_1(self):
        parts = products(rows_of(SKETCHES), None, CPU)
        weights = pooled_weights(parts, TOKENS)
        assert weights / weights[0] == pytest.approx(np.array(TOKENS) / TOKENS[0])
        assert (weights * parts.norms).max() == pytest.approx(1)

    def test_nothing_without_a_signal(self):
        parts = products(rows_of(np.zeros((2, 4)), np.full((1, 4), np.nan)), None, CPU)
        assert pooled_weights(parts, [5, 5, 5]).tolist() == [0, 0, 0]
        assert pooled_weights(parts, None).tolist() == [0, 0, 0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_the_length_is_that_of_the_mean_gradient(kind, size):
    sketches = SKETCHES.copy()
    sketches[4] = 0
    rows = rows_of(sketches * size)
    norms = np.linalg.norm(sketches, axis=1, keepdims=True)
    units = np.divide(sketches, norms, out=np.zeros_like(sketches), where=norms > 0)
    sums = {"pooled": np.array(TOKENS) @ sketches / sum(TOKENS), "mean": sketches.mean(0), "normalized": units.mean(0)}
    wanted = np.linalg.norm(sums[kind]) * (1 if kind == "normalized" else size)
    assert aggregate(rows, kind, TOKENS, CPU).length == pytest.approx(wanted, rel=1e-5)


def test_what_is_left_of_earlier_refreshes_is_a_geometric_sum():
    parts = [SKETCHES[:5], SKETCHES[5:9], SKETCHES[9:]]
    first, *later = (aggregate(rows_of(part), "mean", None, CPU) for part in parts)
    found = first
    for gradient in later:
        found = decayed(gradient, found.vector, found.length, 0.7)
    total = 0.49 * parts[0].mean(0) + 0.7 * parts[1].mean(0) + parts[2].mean(0)
    assert found.vector.numpy() == pytest.approx(direction(total), abs=1e-6)
    assert found.length == pytest.approx(np.linalg.norm(total), rel=1e-5)
    assert (found.coherence, found.used.tolist()) == (later[1].coherence, later[1].used.tolist())


def test_a_length_that_was_not_kept_leaves_nothing():
    new = aggregate(rows_of(SKETCHES[:4]), "mean", None, CPU)
    found = decayed(new, aggregate(rows_of(SKETCHES[4:]), "mean", None, CPU).vector, 0.0, 0.7)
    assert found.vector.numpy() == pytest.approx(new.vector.numpy(), abs=1e-7)


def test_gradients_that_cancel_are_refused():
    new = aggregate(rows_of(SKETCHES), "mean", None, CPU)
    with pytest.raises(InvalidValue, match="cancels the new one"):
        decayed(new, -new.vector, new.length, 1.0)

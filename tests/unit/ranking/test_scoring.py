"""From a request to its ranked columns: rejected rows, exact columns, any magnitude, evidence, reliability."""

import numpy as np
import pytest
from ranking_kit import CPU, by_id, cosines, matrix, rank, request_of, unit

from gradalign import InvalidValue, SketchMatrix
from gradalign_scorer.ranking.scoring import NOT_FINITE, Evidence, Scored, Scoring, score, score_together

RNG = np.random.default_rng(0)
SKETCHES = RNG.standard_normal((30, 48))
VECTOR = RNG.standard_normal(48)
DTYPES = ("float16", "bfloat16", "float32", "int8")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("strategy", ["cosine", "norm", "learnalign", "diverse", "accgreedy", "random"])
def test_rows_with_nan_or_inf_are_named_and_the_rest_is_as_if_they_had_not_come(dtype, strategy):
    broken = SKETCHES.copy()
    broken[3, 47], broken[11, 0], broken[29] = np.nan, np.inf, -np.inf
    rest = np.delete(np.arange(30), [3, 11, 29])
    rates, tokens = RNG.uniform(0, 1, 30), RNG.integers(1, 50, 30)
    common = {"validation": unit(VECTOR), "dtype": dtype}
    scored = rank(broken, strategy, pass_rates=rates, tokens=tokens, **common)
    ids = [f"p{i}" for i in rest]
    alone = rank(broken[rest], strategy, ids=ids, pass_rates=rates[rest], tokens=tokens[rest], **common)
    assert [(row.problem_id, row.reason) for row in scored.rejected] == [(f"p{i}", NOT_FINITE) for i in (3, 11, 29)]
    assert scored.ids == alone.ids
    for column in ("priorities", "alignments", "weights", "norms", "pass_rates"):
        assert getattr(scored, column) == pytest.approx(getattr(alone, column), abs=1e-6), column
    assert scored.reliability == alone.reliability


def test_a_request_of_rejected_rows_alone_has_an_empty_ranking():
    scored = rank(np.full((3, 8), np.nan), validation=unit(np.ones(8)), pass_rates=[0.1, 0.2, 0.3])
    assert scored.ids == []
    assert [row.problem_id for row in scored.rejected] == ["p0", "p1", "p2"]
    assert scored.reliability is None


@pytest.mark.parametrize("strategy", ["norm", "learnalign", "diverse", "random", "anti"])
def test_no_strategy_minds_an_empty_ranking(strategy):
    assert rank(np.full((3, 8), np.inf), strategy, validation=unit(np.ones(8))).ids == []


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_ranks_what_it_carries(dtype):
    carried = matrix(SKETCHES, dtype).numpy().astype(np.float64)
    scored = rank(SKETCHES, validation=unit(VECTOR), dtype=dtype)
    wanted = cosines(carried, VECTOR)
    assert scored.ids == [f"p{i}" for i in np.argsort(-wanted)]
    assert [by_id(scored)[f"p{i}"] for i in range(30)] == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("strategy", ["cosine", "anti", "learnalign", "diverse", "cosine_accuracy"])
@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        ("float32", 1e-30),
        ("float32", 1e30),
        ("bfloat16", 1e-30),
        ("bfloat16", 1e30),
        ("float16", 2.0**-14),
        ("int8", 2.0**-100),
        ("int8", 2.0**100),
    ],
)
def test_rankings_of_directions_do_not_depend_on_the_unit(strategy, dtype, size):
    # Whole numbers: a factor that is no power of two rounds them again, which moves alignments but little.
    sketches = RNG.integers(-60, 61, SKETCHES.shape).astype(float)
    wanted = rank(sketches, strategy, validation=unit(VECTOR), dtype=dtype, pass_rates=[0.4] * 30)
    scored = rank(sketches * size, strategy, validation=unit(VECTOR), dtype=dtype, pass_rates=[0.4] * 30)
    tolerance = 3e-3 if dtype == "bfloat16" else 1e-5
    assert scored.signal.all()
    if strategy != "diverse":
        one, other = by_id(scored), by_id(wanted)
        assert [one[i] for i in other] == pytest.approx(list(other.values()), abs=tolerance)
    if dtype != "bfloat16":
        assert scored.ids == wanted.ids


@pytest.mark.parametrize(("strategy", "size"), [("norm", 1e-30), ("norm", 1e30), ("dot", 1e-30), ("dot", 1e30)])
def test_rankings_of_lengths_scale_with_the_unit(strategy, size):
    wanted = by_id(rank(SKETCHES, strategy, validation=unit(VECTOR)))
    scored = by_id(rank(SKETCHES * size, strategy, validation=unit(VECTOR)))
    assert [value / size for value in scored.values()] == pytest.approx([wanted[i] for i in scored], rel=1e-4)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("float16", 6e-8),
        ("float16", 65504.0),
        ("bfloat16", 1e-38),
        ("bfloat16", 3.3895e38),
        ("float32", 1e-45),
        ("int8", 1e-45),
        ("int8", 3.4e38),
    ],
)
def test_the_smallest_and_the_largest_number_are_a_signal(dtype, value):
    rows = np.diag(np.full(4, value))
    scored = rank(rows, validation=unit([4, 3, 2, 1]), dtype=dtype)
    assert scored.ids == ["p0", "p1", "p2", "p3"]
    assert scored.alignments == pytest.approx(np.array([4, 3, 2, 1]) / np.sqrt(30), rel=1e-5)
    assert scored.signal.all()


class TestExactColumns:
    DOTS = np.array([1.0, -2.0, 0.5, 0.0])
    NORMS = np.array([2.0, 2.0, 0.5, 3.0])

    def rank(self, strategy="cosine", sketches=SKETCHES[:4], **columns):
        return rank(sketches, strategy, validation=unit(VECTOR), **columns)

    def exact(self, strategy="cosine", sketches=SKETCHES[:4], **columns):
        given = {"dots": self.DOTS, "dots_version": 1, "norms": self.NORMS, **columns}
        return self.rank(strategy, sketches, **given)

    def test_they_replace_the_sketch(self):
        scored = self.exact()
        assert list(zip(scored.ids, scored.alignments.tolist(), strict=True)) == [
            ("p2", 1.0),
            ("p0", 0.5),
            ("p3", 0.0),
            ("p1", -1.0),
        ]
        assert by_id(scored, "norms") == dict(zip(["p0", "p1", "p2", "p3"], self.NORMS, strict=True))
        assert scored.reliability.value == 1.0

    def test_dot_is_the_exact_dot(self):
        assert by_id(self.exact("dot")) == {"p0": 1.0, "p1": -2.0, "p2": 0.5, "p3": 0.0}

    def test_norms_alone_leave_the_cosine_to_the_sketch(self):
        wanted = dict(zip(["p0", "p1", "p2", "p3"], cosines(SKETCHES[:4], VECTOR), strict=True))
        scored = self.rank(norms=self.NORMS)
        assert by_id(scored) == pytest.approx(wanted, abs=1e-6)
        assert scored.reliability.value < 1
        lengths = dict(zip(["p0", "p1", "p2", "p3"], self.NORMS, strict=True))
        assert by_id(self.rank("norm", norms=self.NORMS)) == lengths
        assert by_id(self.rank("dot", norms=self.NORMS)) == pytest.approx(
            {i: wanted[i] * lengths[i] for i in wanted}, abs=1e-6
        )

    def test_dots_alone_are_divided_by_the_sketchs_norms_and_stay_cosines(self):
        scored = self.rank(dots=[1.0, -2.0, 100.0, 0.0], dots_version=1)
        lengths = np.linalg.norm(SKETCHES[:4], axis=1)
        wanted = np.clip([1.0, -2.0, 100.0, 0.0] / lengths, -1, 1)
        assert by_id(scored) == pytest.approx(dict(zip(["p0", "p1", "p2", "p3"], wanted, strict=True)), rel=1e-6)

    def test_a_zero_sketch_with_an_exact_norm_has_its_exact_alignment(self):
        scored = self.exact(sketches=np.zeros((4, 48)))
        assert scored.ids == ["p2", "p0", "p3", "p1"]
        assert scored.signal.all()

    def test_an_exact_norm_of_0_is_no_signal_whatever_the_sketch(self):
        scored = self.exact(norms=[2.0, 2.0, 0.0, 3.0], dots=[1.0, -1.0, 0.0, -1.0])
        assert by_id(scored) == pytest.approx({"p0": 0.5, "p1": -0.5, "p2": 0.0, "p3": -1 / 3})
        assert dict(zip(scored.ids, scored.signal.tolist(), strict=True))["p2"] is False
        assert by_id(scored, "weights")["p2"] == 0.0

    def test_a_row_with_nan_is_rejected_whatever_its_exact_columns(self):
        sketches = SKETCHES[:4].copy()
        sketches[2] = np.nan
        scored = self.exact(sketches=sketches)
        assert scored.ids == ["p0", "p3", "p1"]
        assert [row.problem_id for row in scored.rejected] == ["p2"]

    @pytest.mark.parametrize("excess", [1.0, 1.005])
    def test_rounding_may_make_a_dot_longer_than_its_norm(self, excess):
        scored = self.exact(dots=self.NORMS * excess)
        assert scored.alignments.tolist() == [1.0] * 4

    @pytest.mark.parametrize("factor", [1.02, -1.5, 1e300])
    def test_dots_of_a_vector_that_is_not_of_length_1_are_refused(self, factor):
        with pytest.raises(InvalidValue, match=r"dots\[2\] is .* and norms\[2\] is 0.5") as caught:
            self.exact(dots=[0.0, 0.0, 0.5 * factor, 0.0])
        assert caught.value.param == "dots"
        assert "Divide the validation gradient by its norm" in str(caught.value)

    def test_a_quotient_beyond_float64_is_refused_like_any_other(self):
        with pytest.raises(InvalidValue, match=r"dots\[1\] is 1e\+300"):
            self.exact(dots=[0.0, 1e300, 0.0, 0.0], norms=[1.0, 1e-300, 1.0, 1.0])

    def test_dots_alone_beyond_float64_stay_cosines(self):
        scored = self.rank(sketches=SKETCHES[:2] * 1e-37, dots=[1e300, -1e300], dots_version=1)
        assert scored.alignments.tolist() == [1.0, -1.0]

    @pytest.mark.parametrize("strategy", ["cosine", "dot", "anti", "diverse", "norm"])
    def test_extreme_exact_columns_give_finite_priorities(self, strategy):
        norms = np.array([1e-300, 1e300, 1.0, 5e-324])
        scored = self.exact(strategy, norms=norms, dots=norms * 0.5)
        assert np.isfinite(scored.priorities).all()
        assert scored.alignments == pytest.approx([0.5] * 4, abs=0.51)


class TestReliability:
    def test_it_is_of_the_problems_with_a_signal(self):
        scored = rank(np.vstack([SKETCHES, np.zeros((30, 48))]), validation=unit(VECTOR))
        assert scored.reliability == rank(SKETCHES, validation=unit(VECTOR)).reliability

    def test_too_few_problems_say_nothing(self):
        assert rank(SKETCHES[:2], validation=unit(VECTOR)).reliability is None

    def test_no_advice_where_the_alignments_are_exact(self):
        dots = np.linspace(0, 0.001, 30)
        scored = rank(SKETCHES, validation=unit(VECTOR), norms=np.ones(30), dots=dots, dots_version=1)
        assert (scored.reliability.value, scored.reliability.advised_dim) == (1.0, None)


def test_evidence_stays_with_its_problem():
    """Remembered sums are in the order of the request, and the ranking is not."""
    sums, counts = RNG.standard_normal(30), RNG.uniform(0, 4, 30)
    broken = SKETCHES.copy()
    broken[4] = np.nan
    scored = rank(broken, validation=unit(VECTOR), sums=sums, counts=counts, spread=0.3)
    pooled = (cosines(SKETCHES, VECTOR) + sums) / (1 + counts)
    wanted = {f"p{i}": np.clip(0.25 + pooled[i] / 0.6, 0, 1) for i in range(30) if i != 4}
    assert by_id(scored, "weights") == pytest.approx(wanted, abs=1e-5)


def test_the_body_is_not_written_to():
    data = matrix(SKETCHES).data
    held = bytearray(data)
    rank(SketchMatrix(memoryview(held), 30, 48, "float32"), "diverse", validation=unit(VECTOR))
    assert held == bytes(data)


@pytest.mark.parametrize("strategy", ["cosine", "learnalign", "diverse"])
@pytest.mark.parametrize("dim", [48, 5000])
def test_requests_that_are_scored_together_are_ranked_as_if_each_were_alone(strategy, dim):
    """To the last bit: a repetition that meets other company must not change an order."""
    vector = unit(RNG.standard_normal(dim))
    sketches = [RNG.standard_normal((count, dim)) for count in (1, 30, 7, 64, 2, 33)]
    sketches[2][3] = sketches[5][9] = np.nan
    dtypes = ("float16", "float32", "bfloat16", "float16", "float32", "int8")
    scorings = [
        Scoring(request_of(rows, dtype=dtype), strategy, Evidence(np.zeros(len(rows)), np.zeros(len(rows)), None))
        for rows, dtype in zip(sketches, dtypes, strict=True)
    ]
    together = score_together(scorings, vector, CPU)
    for scoring, scored in zip(scorings, together, strict=True):
        alone = score(scoring.request, strategy, vector, scoring.evidence, CPU)
        assert isinstance(scored, Scored)
        assert (scored.ids, scored.rejected) == (alone.ids, alone.rejected)
        for column in ("priorities", "alignments", "weights", "norms"):
            assert getattr(scored, column).tolist() == getattr(alone, column).tolist(), column


def test_a_request_that_is_refused_does_not_harm_those_it_is_scored_with():
    vector, zeros = unit(np.ones(8)), np.zeros(2)
    fine, wrong = (
        request_of(np.ones((2, 8))),
        request_of(np.ones((2, 8)), dots=[9.0, 9.0], norms=[1.0, 1.0], dots_version=1),
    )
    results = score_together(
        [Scoring(each, "cosine", Evidence(zeros, zeros, None)) for each in (fine, wrong, fine)], vector, CPU
    )
    assert isinstance(results[1], InvalidValue)
    assert [result.ids for result in results if isinstance(result, Scored)] == [["p0", "p1"]] * 2

"""The laws of sketches in a byte a number: how far a number may be off, and what that may do to a ranking."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from ranking_kit import by_id, cosines, matrix, rank, unit

from gradalign import SketchMatrix

quick = settings(max_examples=60, deadline=None)
shapes = st.tuples(st.integers(1, 12), st.integers(1, 40))
numbers = st.floats(-(2.0**127), 2.0**127, width=32)
rows = shapes.flatmap(lambda shape: arrays(np.float32, shape, elements=numbers))
# Of a pass in float32 over as many numbers.
ROUNDING = 1e-5


def whole(made):
    return np.frombuffer(made.data, np.int8).reshape(made.rows, made.dim).astype(np.float64)


@quick
@given(rows)
def test_no_number_is_further_than_half_a_scale_away(rows):
    made = SketchMatrix.of(rows, "int8")
    scales = np.array(made.scales)[:, None]
    # The quotient is rounded to float32 before it is rounded to a whole number.
    assert (np.abs(rows - whole(made) * scales) <= scales * (0.5 + 127 * 2.0**-24)).all()
    assert (scales[np.abs(rows).max(axis=1) == 0] == 0).all()


@quick
@given(rows)
def test_the_largest_of_a_row_is_127_and_its_scale_a_127th_of_it(rows):
    rows = rows[np.abs(rows).max(axis=1) > 1e-30]
    if len(rows):
        made = SketchMatrix.of(rows, "int8")
        assert (np.abs(whole(made)).max(axis=1) == 127).all()
        assert np.array(made.scales) == pytest.approx(np.abs(rows.astype(float)).max(axis=1) / 127, rel=1e-6)


@quick
@given(rows, st.integers(-20, 20))
def test_another_unit_moves_the_scales_alone(rows, power):
    rows = np.where(np.abs(rows) < 1e-20, 0, rows / 1e10).astype(np.float32)
    one, other = SketchMatrix.of(rows, "int8"), SketchMatrix.of(rows * np.float32(2.0**power), "int8")
    assert bytes(one.data) == bytes(other.data)
    assert np.array(other.scales).tolist() == (np.array(one.scales) * 2.0**power).tolist()


@quick
@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.integers(1, 200), st.sampled_from([0.0, 1.0, 3.0]))
def test_problems_whose_alignments_differ_by_more_than_the_rounding_keep_their_order(seed, count, dim, tail):
    """The error of a cosine is at most 2 |e|/|g|, and no number of e is beyond half a scale."""
    rng = np.random.default_rng(seed)
    sketches = (rng.standard_normal((count, dim)) * rng.lognormal(0, tail, (count, dim))).astype(np.float32)
    vector = unit(rng.standard_normal(dim))
    made = matrix(sketches, "int8")
    bound = np.sqrt(dim) * np.array(made.scales) / np.linalg.norm(sketches.astype(float), axis=1) + ROUNDING
    exact = cosines(sketches, vector.numpy())
    scored = rank(made, validation=vector)
    found = np.array([by_id(scored)[f"p{i}"] for i in range(count)])
    assert (np.abs(found - exact) <= bound).all()
    place = {int(problem[1:]): at for at, problem in enumerate(scored.ids)}
    for i in range(count):
        for j in range(count):
            if exact[i] - exact[j] > bound[i] + bound[j]:
                assert place[i] < place[j]


@pytest.mark.parametrize("strategy", ["cosine", "dot", "norm", "anti", "learnalign", "diverse"])
@quick
@given(st.integers(0, 2**32 - 1))
def test_int8_ranks_as_the_numbers_that_it_stands_for(strategy, seed):
    rng = np.random.default_rng(seed)
    made = matrix(rng.standard_normal((14, 40)) * rng.lognormal(0, 1, (14, 1)), "int8")
    vector = unit(rng.standard_normal(40))
    one, other = (rank(each, strategy, validation=vector) for each in (made, made.numpy()))
    assert one.ids == other.ids
    for column in ("priorities", "alignments", "norms", "weights"):
        assert getattr(one, column) == pytest.approx(getattr(other, column), rel=1e-4, abs=1e-5), column

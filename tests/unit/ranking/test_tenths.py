"""From which part of a ranking a selection comes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradalign_scorer.ranking.selection import tenths


@pytest.mark.parametrize(
    ("count", "picks", "wanted"),
    [
        (10, range(10), [1] * 10),
        (100, range(25), [10, 10, 5, 0, 0, 0, 0, 0, 0, 0]),
        (20, [19], [0] * 9 + [1]),
        (1, [0], [1] + [0] * 9),
        (5, range(5), [1, 0, 1, 0, 1, 0, 1, 0, 1, 0]),
        (10, [], [0] * 10),
    ],
)
def test_of_a_descending_ranking(count, picks, wanted):
    values = -np.arange(count, dtype=np.float64)
    assert tenths(values, np.array(picks, dtype=np.intp)) == wanted


def test_problems_never_scored_are_in_none():
    assert tenths(np.array([np.nan, 1.0, 0.0]), np.arange(3)) == [1, 0, 0, 0, 0, 1, 0, 0, 0, 0]
    assert tenths(np.array([np.nan, np.nan]), np.arange(2)) is None


@given(st.lists(st.floats(-2, 2, width=16), min_size=1, max_size=60), st.data())
def test_as_counted_by_sorting(values, data):
    array = np.array(values)
    picks = data.draw(st.lists(st.integers(0, len(values) - 1), unique=True))
    wanted = [0] * 10
    for i in picks:
        wanted[10 * int((array > array[i]).sum()) // len(values)] += 1
    assert tenths(array, np.array(picks, dtype=np.intp)) == wanted

"""A problem's packed record, read one by one and as columns."""

import math
import struct

import numpy as np

from gradalign_scorer.store.records.problems import ProblemColumns, problem_state

HEAD = "<fffffddII"


def record(alignment, version, *earlier, priority=0.5, pass_rate=math.nan, scored=1):
    head = struct.pack(HEAD, alignment, priority, pass_rate, 0.25, 1.0, version, -1.0, scored, 2)
    return head + b"".join(gap.to_bytes(6, "little") + struct.pack("<f", value) for gap, value in earlier)


def test_history_counts_gaps_back_from_the_last_score():
    packed = record(0.5, 2**53 - 1, (7, 0.125), (2**40, math.nan), scored=3)
    state = problem_state("p", packed, history=True)
    assert state.history == [
        {"policy_version": 2**53 - 1 - 2**40 - 7, "alignment": 0.125},
        {"policy_version": 2**53 - 1 - 2**40, "alignment": None},
        {"policy_version": 2**53 - 1, "alignment": 0.5},
    ]
    assert (state.times_scored, state.times_selected, state.pass_rate) == (3, 2, None)
    assert problem_state("p", packed).history == []


def test_a_problem_picked_before_it_was_scored_has_no_history():
    state = problem_state("p", record(math.nan, -1, priority=math.nan, scored=0), history=True)
    assert (state.history, state.alignment, state.priority) == ([], None, 0.0)


def test_columns_keep_the_order_and_mark_the_unknown():
    columns = ProblemColumns.unpack(["a", "b", "c"], [record(0.5, 3), None, record(-1.0, 4, (1, 0.5), scored=2)])
    assert columns.ids == ["a", "b", "c"]
    np.testing.assert_array_equal(columns.column("alignment"), [0.5, np.nan, -1.0])
    np.testing.assert_array_equal(columns.column("policy_version"), [3, -1, 4])
    np.testing.assert_array_equal(columns.column("times_scored"), [1, 0, 2])
    np.testing.assert_array_equal(columns.column("evidence_weight"), [1, 0, 1])
    assert columns.column("alignment").dtype == np.float64


def test_no_columns_of_no_problems():
    assert ProblemColumns.unpack([], []).column("alignment").shape == (0,)

"""Requests refuse wrong values by name, on either side of the wire."""

import numpy as np
import pytest
import torch

from gradalign import InvalidValue, Projection, RefreshRequest, ScoreRequest, SelectRequest, SketchMatrix
from gradalign.messages import MAX_PROBLEMS

PROJECTION = Projection(dim=8, seed=0, parameters="ab" * 32)


def score(**changes):
    rows = np.ones((2, 8), dtype=np.float32)
    fields = {"run_id": "r", "policy_version": 1, "projection": PROJECTION, "problem_ids": ["a", "b"]}
    return ScoreRequest(**{**fields, "sketches": SketchMatrix.of(rows), **changes})


@pytest.mark.parametrize(
    ("change", "param", "says"),
    [
        ({"run_id": "a/b"}, "run_id", "letters, digits"),
        ({"run_id": ""}, "run_id", "1 to 128"),
        ({"run_id": "a" * 129}, "run_id", "1 to 128"),
        ({"policy_version": -1}, "policy_version", "integer from 0"),
        ({"policy_version": 1.5}, "policy_version", "1.5"),
        ({"problem_ids": ["a", "a"]}, "problem_ids", "distinct"),
        ({"problem_ids": ["a", ""]}, "problem_ids[1]", "1 to 256"),
        ({"problem_ids": ["a", "b" * 257]}, "problem_ids[1]", "1 to 256"),
        ({"problem_ids": ["a", 3]}, "problem_ids[1]", "string"),
        ({"problem_ids": "ab"}, "problem_ids", "list"),
        ({"problem_ids": []}, "problem_ids", "expected 1 to"),
        ({"problem_ids": [str(i) for i in range(MAX_PROBLEMS + 1)]}, "problem_ids", "several requests"),
        ({"problem_ids": ["a"]}, "sketches", r"\[1 problem_ids, 8"),
        ({"norms": [1.0]}, "norms", "1 values for 2"),
        ({"norms": [1.0, float("nan")]}, "norms[1]", "finite"),
        ({"norms": [1.0, -2.0]}, "norms[1]", "from 0"),
        ({"tokens": [1, 2.5]}, "tokens[1]", "integer"),
        ({"pass_rates": [0.5, 1.5]}, "pass_rates[1]", "from 0 to 1"),
        ({"dots": [1.0, 2.0]}, "dots_version", "together"),
        ({"strategy": "best"}, "strategy", "cosine"),
        ({"select": -1}, "select", "integer"),
        ({"epoch": -1}, "epoch", "integer"),
        ({"request_id": "no spaces"}, "request_id", "letters"),
    ],
)
def test_wrong_values_are_refused_by_name(change, param, says):
    with pytest.raises(InvalidValue, match=says) as caught:
        score(**change)
    assert caught.value.param == param


def test_header_leaves_absent_fields_out():
    assert set(score().header()) == {"run_id", "policy_version", "projection", "problem_ids", "dtype"}


def test_numpy_and_torch_scalars_and_columns_are_taken():
    request = score(policy_version=np.int64(3), norms=torch.tensor([1.0, 2.0]), tokens=np.array([4, 5]))
    assert (request.policy_version, request.norms, request.tokens) == (3, [1.0, 2.0], [4, 5])


def test_unknown_header_keys_are_refused_with_the_known_ones():
    header = {**score().header(), "pass_rate": [1.0, 1.0]}
    with pytest.raises(InvalidValue, match="pass_rates") as caught:
        ScoreRequest.from_header(header, score().sketches.data)
    assert caught.value.param == "pass_rate"


def test_missing_header_keys_are_named():
    header = score().header()
    del header["dtype"]
    with pytest.raises(InvalidValue, match="dtype is missing"):
        ScoreRequest.from_header(header, score().sketches.data)


def test_bin_of_the_wrong_length_says_what_it_should_be():
    with pytest.raises(InvalidValue, match="63 bytes; expected 64 = 2 problem_ids x 8 dim x 4 bytes of float32"):
        ScoreRequest.from_header(score().header(), score().sketches.data[:63])


def test_refresh_refuses_an_unknown_aggregation():
    fields = {key: value for key, value in vars(score()).items() if key in ("run_id", "policy_version", "projection")}
    with pytest.raises(InvalidValue, match="pooled, mean, normalized"):
        RefreshRequest(**fields, problem_ids=["a", "b"], sketches=score().sketches, aggregation="median")


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"count": 0}, "count"),
        ({"exploration": 1.1}, "exploration"),
        ({"half_life": 0}, "half_life"),
        ({"seed": -1}, "seed"),
    ],
)
def test_select_refuses_wrong_settings(change, param):
    with pytest.raises(InvalidValue) as caught:
        SelectRequest.from_json({"run_id": "r", "policy_version": 1, "count": 2, **change})
    assert caught.value.param == param


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_matrix_of_a_tensor_keeps_its_values(dtype):
    rows = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    matrix = SketchMatrix.of(rows)
    assert matrix.dtype == ("float32" if dtype is torch.float64 else str(dtype).removeprefix("torch."))
    np.testing.assert_array_equal(matrix.numpy().astype(np.float32), rows.float().numpy())


def test_matrix_does_not_copy_a_contiguous_array():
    rows = np.ones((2, 3), dtype=np.float16)
    assert np.shares_memory(np.frombuffer(SketchMatrix.of(rows).data, np.float16), rows)


@pytest.mark.parametrize("rows", [np.ones(4), np.ones((0, 4)), [[1.0], [1.0, 2.0]], ["a"], np.ones((1, 2, 3))])
def test_matrix_refuses_what_is_not_rows_of_numbers(rows):
    with pytest.raises(InvalidValue, match="expected"):
        SketchMatrix.of(rows)

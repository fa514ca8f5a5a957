"""Requests refuse wrong values by name, on either side of the wire."""

import json

import numpy as np
import pytest
import torch

from gradalign import InvalidValue, Projection, RefreshRequest, ScoreRequest, SelectRequest, SketchMatrix
from gradalign.wire.checks import check_features
from gradalign.wire.codec import JSON, decode_request
from gradalign.wire.messages import MAX_PROBLEMS

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


HUGE = 10**400
NARROW = Projection(dim=4, seed=0, parameters="ab" * 32)


def json_body(**changes):
    body = {**score().header(), "projection": NARROW.to_map(), "sketches": [[1, 2.5, 0, 0], [0, 0, 1, 1]], **changes}
    return json.dumps({key: value for key, value in body.items() if key != "dtype"})


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        ("1.5", "'1.5'"),
        (True, "True"),
        (False, "False"),
        (None, "None"),
        ([1.0], "[1.0]"),
        ({}, "{}"),
        (HUGE, "an integer of 1329 bits"),
        (-HUGE, "an integer of 1329 bits"),
        (1e39, "1e+39"),
        (10**39, "1000000"),
    ],
)
def test_what_is_no_number_of_a_json_sketch_is_refused_by_its_place(cell, says):
    body = json_body(sketches=[[1, 2.5, 0, 0], [0, 0, cell, 1]])
    with pytest.raises(InvalidValue) as caught:
        decode_request(ScoreRequest, JSON, body.encode())
    assert caught.value.param == "sketches"
    assert f"sketches[1][2] is {says}" in caught.value.message


@pytest.mark.parametrize("literal", ["1e999", "-1e999"])
def test_a_json_number_beyond_float64_is_refused_and_infinity_is_what_it_says(literal):
    body = json_body().replace("2.5", literal)
    with pytest.raises(InvalidValue, match=r"sketches\[0\]\[1\] is -?inf; expected a number within float32"):
        decode_request(ScoreRequest, JSON, body.encode())
    for constant in ("Infinity", "-Infinity", "NaN"):  # as Python writes a gradient that overflowed
        rows = decode_request(ScoreRequest, JSON, json_body().replace("2.5", constant).encode()).sketches.numpy()
        assert np.isfinite(rows).tolist() == [[True, False, True, True], [True] * 4]


def test_an_integer_of_thousands_of_digits_is_an_invalid_value():
    body = json_body().replace("2.5", "9" * 5000)
    with pytest.raises(InvalidValue, match=r"4,300 digits; expected numbers within float64"):
        decode_request(ScoreRequest, JSON, body.encode())


@pytest.mark.parametrize("rows", ["ab", {"a": 1}, None, 5, [1, 2], ["ab"], [], [[]], [[1, 2], [1]], [[[1]]]])
def test_what_are_no_rows_of_a_json_sketch_is_refused(rows):
    with pytest.raises(InvalidValue, match="expected") as caught:
        decode_request(ScoreRequest, JSON, json_body(sketches=rows).encode())
    assert caught.value.param == "sketches"


@pytest.mark.parametrize("value", ["1.5", True, None, HUGE, [1], {}, np.True_, torch.tensor(True)])
@pytest.mark.parametrize("name", ["norms", "dots", "pass_rates", "rollouts", "tokens"])
def test_what_is_no_number_of_a_column_is_refused_by_its_place(name, value):
    more = {"dots_version": 1} if name == "dots" else {}
    with pytest.raises(InvalidValue) as caught:
        score(**{name: [0, value]}, **more)
    assert caught.value.param == f"{name}[1]"


@pytest.mark.parametrize("row", [np.array([1.0, 2.0], dtype=np.float32), torch.tensor([1.0, 2.0]), (1, 2)])
def test_features_are_lists_of_whatever_rows_a_trainer_has(row):
    assert check_features("features", [row, [3.0, 4.0]], count=2) == [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize("value", ["1", True, None, HUGE, [1], np.True_])
def test_what_is_no_number_of_features_is_refused_by_its_place(value):
    with pytest.raises(InvalidValue, match=r"features\[1\]\[0\] is ") as caught:
        score(features=[[0.5], [value]])
    assert caught.value.param == "features"


@pytest.mark.parametrize("value", ["1", True, HUGE, 2**63, 2**64, 1.0, -1, [1], np.True_, np.zeros(2)])
@pytest.mark.parametrize("name", ["policy_version", "select", "epoch", "dots_version"])
def test_what_is_no_count_is_refused_by_name(name, value):
    more = {"dots": [0.0, 0.0]} if name == "dots_version" else {}
    with pytest.raises(InvalidValue) as caught:
        score(**{name: value}, **more)
    assert caught.value.param == name


@pytest.mark.parametrize("layout", [True, 2, "1"])
def test_a_layout_that_is_not_the_number_is_refused(layout):
    with pytest.raises(InvalidValue) as caught:
        Projection(dim=4, seed=0, parameters="ab" * 32, layout=layout)
    assert caught.value.param == "projection.layout"


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
def test_text_that_utf8_cannot_write_is_refused_with_its_place(text):
    with pytest.raises(InvalidValue, match="half of a surrogate pair") as caught:
        score(problem_ids=["a", text])
    assert caught.value.param == "problem_ids[1]"
    with pytest.raises(InvalidValue) as caught:
        ScoreRequest.from_json({**score().header(), text: 1, "sketches": []})
    caught.value.to_wire()["error"]["param"].encode()


@pytest.mark.parametrize(
    "rows", [np.ones((2, 4), bool), np.ones((2, 4), "U1"), np.ones((2, 4), complex), torch.ones(2, 4) > 0]
)
def test_matrix_refuses_arrays_of_what_is_not_a_real_number(rows):
    with pytest.raises(InvalidValue, match="expected"):
        SketchMatrix.of(rows)

"""Sketches in a byte a number: how rows are quantised, what a matrix of int8 refuses, and what JSON says of it."""

import json
import tracemalloc

import numpy as np
import pytest
import torch

from gradalign import Client, InvalidValue, Projection, RefreshRequest, ScoreRequest, SketchMatrix
from gradalign.wire.codec import JSON, MSGPACK, decode_request, encode_request
from gradalign.wire.scales import LARGEST_SCALE, NO_NUMBER, quantised_array, quantised_tensor

RNG = np.random.default_rng(0)
PROJECTION = Projection(dim=4, seed=0, parameters="ab" * 32)
WHOLE = [[127, 0, -3, 5], [0, 0, 0, 0]]


def matrix(whole=WHOLE, scales=(0.5, 0.0)):
    whole = np.array(whole, dtype=np.int8)
    return SketchMatrix(memoryview(whole).cast("B"), *whole.shape, "int8", scales)


def request(**changes):
    fields = {"run_id": "r", "policy_version": 1, "projection": PROJECTION, "problem_ids": ["a", "b"]}
    return ScoreRequest(**{**fields, "sketches": matrix(), **changes})


class TestQuantised:
    def test_halves_go_to_the_even_number(self):
        whole, scales = quantised_array(np.array([[127, 0.5, 1.5, -2.5, -0.5, 3.49]], dtype=np.float32))
        assert (whole.tolist(), scales.tolist()) == ([[127, 0, 2, -2, 0, 3]], [1.0])

    def test_a_scale_is_a_127th_of_the_largest_and_0_of_a_row_of_zeros(self):
        whole, scales = quantised_array(np.array([[1.0, -254.0], [0.0, -0.0], [3.0, 1e-9]]))
        assert scales == pytest.approx([2.0, 0.0, 3 / 127], rel=1e-7)
        assert whole.tolist() == [[0, -127], [0, 0], [127, 0]]

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("quantised", [quantised_array, lambda rows: quantised_tensor(torch.from_numpy(rows))])
    def test_a_row_with_a_value_that_is_not_finite_is_marked_whole(self, quantised, value):
        rows = np.array([[2.0, 254.0], [3.0, value], [value, 0.0], [-127.0, 1.0]])
        whole, scales = quantised(rows)
        assert (whole[1:3] == NO_NUMBER).all()
        assert scales[1:3].tolist() == [0.0, 0.0]
        assert whole[[0, 3]].tolist() == [[1, 127], [-127, 1]]

    def test_what_float32_cannot_hold_is_not_finite(self):
        assert quantised_array(np.array([[1e300, 1.0]]))[0].tolist() == [[NO_NUMBER] * 2]
        assert quantised_tensor(torch.tensor([[1e300, 1.0]], dtype=torch.float64))[0].tolist() == [[NO_NUMBER] * 2]

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_a_tensor_becomes_what_an_array_does(self, dtype):
        rows = (torch.randn(300, 1000, generator=torch.Generator().manual_seed(0)) * 7).to(dtype)
        rows[5] = 0
        rows[299, 3] = torch.inf
        array = rows.float().numpy()
        for one, other in zip(quantised_tensor(rows), quantised_array(array), strict=True):
            np.testing.assert_array_equal(one, other)

    @pytest.mark.parametrize("size", [1e-45, 5e-44, 1e-38, 1.0, 3.4028234e38])
    def test_no_magnitude_goes_beyond_127(self, size):
        rows = (size * RNG.uniform(-1, 1, (200, 30))).astype(np.float32)
        rows[:, 0] = size
        whole, scales = quantised_array(rows)
        assert np.abs(whole.astype(int)).max(axis=1).min() > 0
        assert whole.min() > NO_NUMBER
        assert (np.abs(rows - whole * scales[:, None].astype(float)) <= 0.50001 * scales[:, None]).all()
        assert scales.max() <= LARGEST_SCALE

    def test_beside_the_result_there_is_no_copy(self):
        rows = np.ones((1024, 8192), dtype=np.float32)
        tracemalloc.start()
        quantised_array(rows)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < rows.nbytes / 4 + (4 << 20)


class TestMatrix:
    @pytest.mark.parametrize(
        "rows", [RNG.standard_normal((3, 8)), torch.ones(3, 8), [[1.0, 2.0]], np.ones((2, 2), np.int8)]
    )
    def test_of_any_numbers(self, rows):
        made = SketchMatrix.of(rows, "int8")
        wanted = np.asarray(rows, dtype=np.float64)
        assert made.numpy() == pytest.approx(wanted, abs=np.abs(wanted).max() / 127)
        assert made.data.nbytes == wanted.size

    def test_of_another_matrix(self):
        floats = SketchMatrix.of(torch.ones(2, 4, dtype=torch.bfloat16))
        made = SketchMatrix.of(floats, "int8")
        assert made.dtype == "int8"
        assert made.numpy() == pytest.approx(np.ones((2, 4)), rel=1e-6)
        assert SketchMatrix.of(made, "int8") is made
        assert SketchMatrix.of(made) is made
        assert SketchMatrix.of(made, "float32").dtype == "float32"

    @pytest.mark.parametrize("rows", [np.ones((2, 3), np.float16), torch.ones(2, 3, dtype=torch.bfloat16)])
    def test_of_float32(self, rows):
        made = SketchMatrix.of(rows, "float32")
        assert (made.dtype, made.numpy().tolist()) == ("float32", [[1.0] * 3] * 2)

    def test_numbers_of_int8_are_numbers(self):
        made = SketchMatrix.of(np.array([[-128, 3]], dtype=np.int8))
        assert (made.dtype, made.numpy().tolist()) == ("float32", [[-128.0, 3.0]])
        assert SketchMatrix.of(torch.tensor([[-128, 3]], dtype=torch.int8)).dtype == "float32"

    def test_a_part_has_its_scales(self):
        whole = SketchMatrix.of(RNG.standard_normal((5, 6)), "int8")
        np.testing.assert_array_equal(whole.part(slice(1, 4)).numpy(), whole.numpy()[1:4])

    def test_minus_128_is_nan(self):
        rows = matrix([[1, -128, 0, 0], [1, 2, 3, 4]], (1.0, 1.0)).numpy()
        assert np.isnan(rows).tolist() == [[False, True, False, False], [False] * 4]

    @pytest.mark.parametrize(
        ("scales", "param", "says"),
        [
            (None, "scales", "missing"),
            ((1.0,), "scales", "1 values for 2"),
            ((1.0, 1.0, 1.0), "scales", "3 values for 2"),
            ((1.0, -1.0), "scales[1]", "-1.0"),
            ((float("nan"), 1.0), "scales[0]", "nan"),
            ((1.0, float("inf")), "scales[1]", "inf"),
            ((1.0, 1e37), "scales[1]", "1e\\+37"),
            ((1.0, True), "scales[1]", "True"),
            ("ab", "scales", "list of 2 numbers"),
        ],
    )
    def test_wrong_scales_are_refused_by_name(self, scales, param, says):
        with pytest.raises(InvalidValue, match=says) as caught:
            matrix(scales=scales)
        assert caught.value.param == param

    def test_scales_go_with_int8_alone(self):
        data = memoryview(np.ones((2, 4), np.float16)).cast("B")
        with pytest.raises(InvalidValue, match="dtype float16, and goes with int8 only") as caught:
            SketchMatrix(data, 2, 4, "float16", (1.0, 1.0))
        assert caught.value.param == "scales"

    def test_scales_are_float32(self):
        assert matrix(scales=[0.1, 1e-300]).scales == (float(np.float32(0.1)), 0.0)
        assert matrix(scales=np.array([1, 2])).scales == (1.0, 2.0)

    def test_another_dtype_to_send_is_refused(self):
        with pytest.raises(InvalidValue, match="expected one of float32, int8"):
            SketchMatrix.of(np.ones((1, 1)), "int4")
        with pytest.raises(InvalidValue, match="sketch_dtype is 'half'; expected one of float32, int8"):
            Client("http://scorer", run_id="r", sketch_dtype="half")


class TestWire:
    def test_scales_travel_in_the_header(self):
        assert (request().header()["dtype"], request().header()["scales"]) == ("int8", [0.5, 0.0])
        decoded = decode_request(ScoreRequest, MSGPACK, memoryview(b"".join(encode_request(request()))))
        assert decoded == request()

    def test_an_unknown_key_is_answered_with_scales_among_the_known(self):
        with pytest.raises(InvalidValue, match=r"the keys of this request are .*, scales"):
            ScoreRequest.from_header({**request().header(), "scale": [1.0]}, request().sketches.data)

    def test_products_have_no_scales(self):
        header = {"run_id": "r", "policy_version": 1, "problem_ids": ["a"], "products": [[1.0]], "products_version": 1}
        with pytest.raises(InvalidValue, match="scales was sent with products"):
            ScoreRequest.from_header({**header, "scales": [1.0]}, memoryview(b""))

    @pytest.mark.parametrize("kind", [ScoreRequest, RefreshRequest])
    def test_json_carries_whole_numbers(self, kind):
        decoded = decode_request(kind, JSON, memoryview(body().encode()))
        assert (decoded.sketches.dtype, decoded.sketches.scales) == ("int8", (0.5, 0.0))
        assert decoded.sketches.numpy().tolist() == [[63.5, 0.0, -1.5, 2.5], [0.0] * 4]

    @pytest.mark.parametrize(
        ("changes", "param", "says"),
        [
            ({"scales": None}, "scales", "dtype int8 was sent without scales"),
            ({"dtype": None}, "scales", "scales was sent without dtype int8"),
            ({"dtype": "float32"}, "scales", "scales was sent without dtype int8"),
            ({"scales": [1.0]}, "scales", "1 values for 2"),
            (
                {"sketches": [[1, 2, 3, 128], [0] * 4]},
                "sketches",
                r"sketches\[0\]\[3\] is 128; expected with dtype int8 a",
            ),
            ({"sketches": [[1, 2, 3, 4], [0, -129, 0, 0]]}, "sketches", r"sketches\[1\]\[1\] is -129"),
            ({"sketches": [[1, 2, 3, 4], [0, 0.5, 0, 0]]}, "sketches", r"sketches\[1\]\[1\] is 0.5"),
            ({"sketches": [[1, 2, 3, 4], [0, float("nan"), 0, 0]]}, "sketches", r"sketches\[1\]\[1\] is nan"),
            (
                {"sketches": [[1, 2, 3, 4], [0, 10**400, 0, 0]]},
                "sketches",
                r"sketches\[1\]\[1\] is an integer of 1329 bits",
            ),
            ({"sketches": []}, "sketches", "expected"),
            ({"sketches": [[]]}, "sketches", "expected"),
        ],
    )
    def test_wrong_json_is_refused_by_name(self, changes, param, says):
        with pytest.raises(InvalidValue, match=says) as caught:
            decode_request(ScoreRequest, JSON, memoryview(body(**changes).encode()))
        assert caught.value.param == param

    def test_json_takes_a_dtype_of_float_for_nothing(self):
        text = body(dtype="float64", scales=None, sketches=[[0.5, 1, 2, 3], [0] * 4])
        assert decode_request(ScoreRequest, JSON, memoryview(text.encode())).sketches.dtype == "float32"


def body(**changes):
    return json.dumps({**request().header(), "sketches": WHOLE, **changes})

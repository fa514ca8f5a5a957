"""Requests with products: what they hold, what they refuse by name, and their bytes."""

import json

import msgpack
import numpy as np
import pytest
import torch

from gradalign import InvalidValue, MalformedRequest, Projection, RefreshRequest, ScoreRequest, SketchMatrix
from gradalign.wire.checks import MAX_PRODUCTS, MAX_ROLLOUTS
from gradalign.wire.codec import JSON, MSGPACK, decode_request, encode_request

PROJECTION = Projection(dim=8, seed=0, parameters="ab" * 32)
SKETCHES = SketchMatrix.of(np.ones((2, 8), dtype=np.float32))
GROUPS = [[0.5, -0.25, 1.0], [0.0]]


def score(**changes):
    fields = {"run_id": "r", "policy_version": 1, "problem_ids": ["a", "b"], "products": GROUPS, "products_version": 3}
    return ScoreRequest(**{**fields, **changes})


def refresh(**changes):
    fields = {"run_id": "r", "policy_version": 1, "problem_ids": ["a", "b"], "products": GROUPS, "lengths": 1.25}
    return RefreshRequest(**{**fields, **changes})


class TestValues:
    @pytest.mark.parametrize(
        "products",
        [
            GROUPS,
            [tuple(GROUPS[0]), GROUPS[1]],
            [np.array(GROUPS[0], dtype=np.float32), torch.tensor(GROUPS[1])],
            [[torch.tensor(0.5), np.float32(-0.25), 1], [0]],
        ],
    )
    def test_ragged_groups_of_any_making(self, products):
        assert score(products=products).products == GROUPS

    def test_a_matrix(self):
        assert score(products=torch.tensor([[1.0, 2.0], [3.0, 4.0]])).products == [[1.0, 2.0], [3.0, 4.0]]

    def test_nan_and_inf_are_the_scorers_business(self):
        assert score(products=[[float("inf")], [float("-inf")]]).products == [[float("inf")], [float("-inf")]]

    @pytest.mark.parametrize(
        "lengths", [1.25, [1.25], np.float32(1.25), torch.tensor([1.25]), [torch.tensor(1.25)], (1.25,)]
    )
    def test_a_length_is_a_number_or_a_list_of_one(self, lengths):
        assert refresh(lengths=lengths).lengths == 1.25

    @pytest.mark.parametrize("carried", [-0.5, 0, 2.25])
    def test_what_is_carried_may_have_either_sign(self, carried):
        assert refresh(carried=carried).carried == carried
        assert "carried" not in refresh().header()

    def test_what_is_not_asked_for_stays_off_the_wire(self):
        header = score(rollout_weights=False, shrink_weights=False).header()
        assert set(header) == {"run_id", "policy_version", "problem_ids", "products", "products_version"}
        assert score(rollout_weights=True).header()["rollout_weights"] is True

    def test_false_goes_with_sketches_too(self):
        request = ScoreRequest(
            run_id="r", policy_version=0, problem_ids=["a", "b"], projection=PROJECTION, sketches=SKETCHES,
            rollout_weights=False,
        )  # fmt: skip
        assert request.kind == "sketches"
        assert "rollout_weights" not in request.header()


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "param", "says"),
        [
            ({"products": [[1.0]]}, "products", "1 groups for 2 problem_ids"),
            ({"products": [[1.0], []]}, "products[1]", "1 to 4096 numbers"),
            ({"products": [[1.0], [0.0] * (MAX_ROLLOUTS + 1)]}, "products[1]", "1 to 4096"),
            ({"products": [[1.0], "ab"]}, "products[1]", "expected a list"),
            ({"products": [1.0, 2.0]}, "products[0]", "expected a list"),
            ({"products": [[1.0], [True]]}, "products[1][0]", "expected a number"),
            ({"products": [[1.0], [None]]}, "products[1][0]", "expected a number"),
            ({"products": [[1.0], ["1"]]}, "products[1][0]", "expected a number"),
            ({"products": [[1.0], [10**400]]}, "products[1][0]", "expected a number"),
            ({"products": [[1.0], [[2.0]]]}, "products[1][0]", "expected a number"),
            ({"products": "ab"}, "products", "expected 2 lists"),
            ({"products": {"a": [1.0], "b": [1.0]}}, "products", "expected 2 lists"),
            ({"products_version": None}, "products_version", "validation_version"),
            ({"products_version": -1}, "products_version", "integer"),
            ({"projection": PROJECTION}, "projection", "goes with sketches only"),
            ({"sketches": SKETCHES}, "products", "both sketches and products"),
            ({"sketches": SKETCHES, "projection": PROJECTION}, "products", "both sketches and products"),
            ({"dots": [1.0, 2.0], "dots_version": 3}, "dots", "goes with sketches only"),
            ({"norms_kind": "head"}, "norms_kind", "without norms"),
            ({"norms_kind": "approximate", "norms": [1.0, 1.0]}, "norms_kind", "exact, head"),
            ({"norms": [1.0]}, "norms", "1 values for 2"),
            ({"rollout_weights": "yes"}, "rollout_weights", "true or false"),
            ({"shrink_weights": 1}, "shrink_weights", "true or false"),
        ],
    )
    def test_of_score(self, change, param, says):
        with pytest.raises(InvalidValue, match=says) as caught:
            score(**change)
        assert caught.value.param == param

    @pytest.mark.parametrize(
        ("change", "param", "says"),
        [
            ({"lengths": None}, "lengths", "lengths is missing"),
            ({"lengths": 0.0}, "lengths", "one positive number"),
            ({"lengths": -1.0}, "lengths", "one positive number"),
            ({"lengths": float("nan")}, "lengths", "one positive number"),
            ({"lengths": float("inf")}, "lengths", "one positive number"),
            ({"lengths": [1.0, 2.0]}, "lengths", "one positive number"),
            ({"lengths": []}, "lengths", "one positive number"),
            ({"lengths": "1"}, "lengths", "one positive number"),
            ({"lengths": True}, "lengths", "one positive number"),
            ({"carried": float("nan")}, "carried", "finite number"),
            ({"carried": 1e31}, "carried", "finite number"),
            ({"carried": "1"}, "carried", "finite number"),
            ({"aggregation": "mean"}, "aggregation", "goes with sketches only"),
            ({"decay": 0.5}, "decay", "goes with sketches only"),
        ],
    )
    def test_of_refresh(self, change, param, says):
        with pytest.raises(InvalidValue, match=says) as caught:
            refresh(**change)
        assert caught.value.param == param

    @pytest.mark.parametrize(
        ("key", "value"),
        [("products_version", 1), ("norms_kind", "exact"), ("rollout_weights", True), ("shrink_weights", True)],
    )
    def test_keys_of_products_among_sketches(self, key, value):
        fields = {"run_id": "r", "policy_version": 0, "problem_ids": ["a", "b"], "norms": [1.0, 1.0]}
        with pytest.raises(InvalidValue, match="goes with products only") as caught:
            ScoreRequest(**fields, projection=PROJECTION, sketches=SKETCHES, **{key: value})
        assert caught.value.param == key

    def test_neither(self):
        with pytest.raises(InvalidValue, match=r"sketches is missing; .* or products"):
            ScoreRequest(run_id="r", policy_version=0, problem_ids=["a"])
        with pytest.raises(InvalidValue, match="projection is missing"):
            ScoreRequest(run_id="r", policy_version=0, problem_ids=["a", "b"], sketches=SKETCHES)

    def test_more_rollouts_than_a_request_may_hold(self):
        ids = [f"p{i}" for i in range(MAX_PRODUCTS // MAX_ROLLOUTS + 1)]
        with pytest.raises(InvalidValue, match="Split the problems"):
            score(problem_ids=ids, products=[[0.0] * MAX_ROLLOUTS] * len(ids))


class TestBytes:
    def test_the_client_sends_the_header_alone(self):
        body = b"".join(encode_request(score()))
        assert msgpack.unpackb(body) == score().header()
        assert decode_request(ScoreRequest, MSGPACK, memoryview(body)) == score()

    @pytest.mark.parametrize("empty", [b"\xc4\x00", b"\xc5\x00\x00", b"\xc6\x00\x00\x00\x00"])
    def test_an_empty_bin_behind_it_is_taken(self, empty):
        body = b"".join(encode_request(refresh())) + empty
        assert decode_request(RefreshRequest, MSGPACK, memoryview(body)) == refresh()

    def test_json(self):
        text = json.dumps({**score().header(), "sketches": None, "projection": None, "dtype": None})
        assert decode_request(ScoreRequest, JSON, memoryview(text.encode())) == score()

    def test_a_null_is_no_product(self):
        header = {"run_id": "r", "policy_version": 1, "problem_ids": ["a"], "products": None}
        with pytest.raises(MalformedRequest, match="or products in it"):
            decode_request(ScoreRequest, MSGPACK, memoryview(msgpack.packb(header)))
        with pytest.raises(InvalidValue, match="sketches is missing"):
            decode_request(ScoreRequest, JSON, memoryview(json.dumps(header).encode()))

    @pytest.mark.parametrize("key", ["projection", "dtype", "sketches"])
    def test_keys_of_sketches_are_refused(self, key):
        header = {**score().header(), key: "float16"}
        with pytest.raises(InvalidValue, match=r"goes with sketches only|unknown key") as caught:
            decode_request(ScoreRequest, JSON, memoryview(json.dumps(header).encode()))
        assert caught.value.param == key

    def test_a_bin_with_something_in_it_is_refused(self):
        body = msgpack.packb(score().header()) + msgpack.packb(b"1234")
        with pytest.raises(InvalidValue, match="a bin of 4 bytes"):
            decode_request(ScoreRequest, MSGPACK, memoryview(body))

    def test_the_largest_request_fits_the_header(self):
        ids = [f"problem-{i:04d}" for i in range(4096)]
        products = np.random.default_rng(0).standard_normal((4096, MAX_PRODUCTS // 4096))
        request = score(problem_ids=ids, products=products)
        body = b"".join(encode_request(request))
        assert decode_request(ScoreRequest, MSGPACK, memoryview(body)) == request

"""Requests of pass rates alone: what they need, what does not go with them, and that no other request became one."""

import msgpack
import numpy as np
import pytest

from gradalign import (
    InvalidValue,
    MalformedRequest,
    Projection,
    RefreshRequest,
    ScoreRequest,
    SelectRequest,
    SketchMatrix,
)
from gradalign.wire.codec import JSON, MSGPACK, decode_arriving, decode_request, encode_request, encode_value

ALONE = {"run_id": "r", "policy_version": 0, "problem_ids": ["a", "b"], "pass_rates": [0.5, 1.0], "rollouts": [8, 4]}
PROJECTION = Projection(dim=2, seed=0, parameters="ab" * 32)
ROWS = SketchMatrix.of(np.eye(2, dtype=np.float32))
SKETCHED = {**ALONE, "projection": PROJECTION, "sketches": ROWS}
PRODUCTS = {**ALONE, "products": [[0.5], [0.1]], "products_version": 1}


def test_the_kind_is_what_was_sent():
    assert ScoreRequest(**ALONE).kind == "pass_rates"
    assert ScoreRequest(**SKETCHED).kind == "sketches"
    assert ScoreRequest(**PRODUCTS).kind == "products"
    assert ScoreRequest(**{**ALONE, "pass_rates": np.array([0.5, 1.0])}).pass_rates == [0.5, 1.0]


@pytest.mark.parametrize("kind", [MSGPACK, JSON])
def test_it_survives_both_encodings(kind):
    request = ScoreRequest(**ALONE, discount=0.5, strategy="posterior", tokens=[3, 4], select=1, epoch=2)
    body = b"".join(encode_request(request)) if kind == MSGPACK else encode_value(request.header(), JSON)
    assert decode_request(ScoreRequest, kind, memoryview(body)) == request
    if kind == MSGPACK:
        assert decode_request(ScoreRequest, kind, memoryview(body + b"\xc4\x00")) == request
        assert decode_arriving(ScoreRequest, memoryview(body), len(body)) == request
        assert decode_arriving(ScoreRequest, memoryview(body), len(body) - 3) is None


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"rollouts": None}, "rollouts"),
        ({"norms": [1.0, 1.0]}, "norms"),
        ({"norms_kind": "head"}, "norms_kind"),
        ({"features": [[0.1], [0.2]]}, "features"),
        ({"dots": [0.1, 0.1], "dots_version": 1}, "dots"),
        ({"products_version": 1}, "products_version"),
        ({"rollout_weights": True}, "rollout_weights"),
        ({"shrink_weights": True}, "shrink_weights"),
        ({"strategy": "cosine"}, "strategy"),
        ({"strategy": "shrunken"}, "strategy"),
        ({"discount": 1.5}, "discount"),
        ({"discount": float("nan")}, "discount"),
        ({"pass_rates": [0.5, 1.5]}, "pass_rates[1]"),
        ({"rollouts": [8]}, "rollouts"),
    ],
)
def test_what_does_not_go_with_pass_rates_alone_is_named(more, param):
    with pytest.raises(InvalidValue) as caught:
        ScoreRequest(**{**ALONE, **more})
    assert caught.value.param == param
    assert len(str(caught.value)) > 40


@pytest.mark.parametrize("more", [{"discount": 0.5}, {"strategy": "posterior"}])
@pytest.mark.parametrize("missing", ["pass_rates", "rollouts"])
def test_a_belief_in_a_run_of_gradients_needs_both_columns(more, missing):
    assert ScoreRequest(**{**SKETCHED, **more}).header()["rollouts"] == [8, 4]
    with pytest.raises(InvalidValue, match=f"{missing} is missing") as caught:
        ScoreRequest(**{**SKETCHED, **more, missing: None})
    assert caught.value.param == missing


def test_a_request_that_forgot_its_sketches_is_still_told_so():
    with pytest.raises(InvalidValue, match="sketches is missing"):
        ScoreRequest(**{**ALONE, "projection": PROJECTION})
    header = {**ALONE, "projection": PROJECTION.to_map(), "dtype": "float32"}
    with pytest.raises(MalformedRequest, match="pass_rates and rollouts without a projection"):
        decode_request(ScoreRequest, MSGPACK, memoryview(msgpack.packb(header)))
    with pytest.raises(InvalidValue, match="projection is missing"):
        decode_request(ScoreRequest, MSGPACK, memoryview(msgpack.packb(ALONE) + msgpack.packb(b"1234")))
    with pytest.raises(InvalidValue, match="projection is missing"):
        decode_request(ScoreRequest, JSON, memoryview(encode_value({**ALONE, "sketches": [[1.0], [2.0]]}, JSON)))
    with pytest.raises(InvalidValue, match="scales was sent with pass_rates alone"):
        decode_request(ScoreRequest, JSON, memoryview(encode_value({**ALONE, "scales": [1.0, 1.0]}, JSON)))


def test_a_refresh_knows_no_pass_rates():
    with pytest.raises(InvalidValue, match="unknown key 'pass_rates'"):
        decode_request(RefreshRequest, MSGPACK, memoryview(msgpack.packb(ALONE)))


def test_a_select_names_one_way_to_pick():
    ask = {"run_id": "r", "policy_version": 0, "count": 1}
    assert SelectRequest(**ask, strategy="posterior").header()["strategy"] == "posterior"
    assert "strategy" not in SelectRequest(**ask).header()
    with pytest.raises(InvalidValue, match="expected one of posterior"):
        SelectRequest(**ask, strategy="cosine")
    with pytest.raises(InvalidValue, match="send one of them") as caught:
        SelectRequest(**ask, strategy="posterior", problem_ids=["a"], features=[[0.5]])
    assert caught.value.param == "features"

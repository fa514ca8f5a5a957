"""The golden bytes of `proto/vectors/codec.json`: what other clients are tested against must hold for ours."""

import json
from pathlib import Path

import msgpack
import numpy as np
import pytest

from gradalign import Projection, RefreshRequest, ScoreRequest, SelectRequest, SketchMatrix, parameters_digest
from gradalign.wire.codec import MSGPACK, decode_request, decode_value, encode_request, encode_value

GOLDEN = json.loads((Path(__file__).parents[3] / "proto/vectors/codec.json").read_text(encoding="utf-8"))
CASES = GOLDEN["requests"]
KINDS = {"/score": ScoreRequest, "/refresh_validation": RefreshRequest}


def decoded(case):
    return decode_request(KINDS[case["path"]], MSGPACK, memoryview(bytes.fromhex(case["body_hex"])))


@pytest.mark.parametrize("name", CASES)
def test_golden_body_is_read_as_written(name):
    request = decoded(CASES[name])
    assert request.header() == CASES[name]["header"]
    if CASES[name]["bin_hex"] is None:
        assert request.sketches is None
    else:
        assert request.sketches.numpy().tolist() == GOLDEN["rows"]


@pytest.mark.parametrize("name", CASES)
def test_golden_body_is_written_again(name):
    assert b"".join(encode_request(decoded(CASES[name]))).hex() == CASES[name]["body_hex"]


@pytest.mark.parametrize("name", CASES)
def test_golden_body_is_two_plain_packs(name):
    case = CASES[name]
    plain = msgpack.packb(case["header"])
    if case["bin_hex"] is not None:
        plain += msgpack.packb(bytes.fromhex(case["bin_hex"]))
    assert plain.hex() == case["body_hex"]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case["bin_hex"] is None])
def test_golden_body_without_sketches_may_have_an_empty_bin(name):
    case = CASES[name]
    body = bytes.fromhex(case["body_hex"]) + msgpack.packb(b"")
    assert decode_request(KINDS[case["path"]], MSGPACK, memoryview(body)) == decoded(case)


@pytest.mark.parametrize("name", GOLDEN["selects"])
def test_golden_select_is_read_and_written_as_it_stands(name):
    case = GOLDEN["selects"][name]
    request = SelectRequest.from_json(decode_value(bytes.fromhex(case["body_hex"]), MSGPACK))
    assert request.header() == case["header"]
    assert encode_value(request.header(), MSGPACK).hex() == case["body_hex"]


def test_golden_rows_are_quantised_as_they_stand():
    golden = GOLDEN["quantised"]
    matrix = SketchMatrix.of(np.array(golden["rows"], dtype=np.float32), "int8")
    assert list(matrix.scales) == golden["scales"]
    assert np.frombuffer(matrix.data, np.int8).reshape(-1, 4).tolist() == golden["int8"]


def test_golden_projection():
    golden = GOLDEN["projection"]
    assert Projection.from_map(golden["map"]).parameters == parameters_digest(golden["shapes"])

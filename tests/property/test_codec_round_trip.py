"""Every request that can be made survives the wire, in both encodings; no bytes crash the decoder."""

import contextlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gradalign import GradAlignError, Projection, RefreshRequest, ScoreRequest, SketchMatrix
from gradalign.wire.codec import JSON, MSGPACK, decode_request, encode_request
from gradalign.wire.messages import AGGREGATIONS, STRATEGIES

names = st.from_regex(r"[A-Za-z0-9._-]{1,128}", fullmatch=True)
ids = st.lists(st.text(min_size=1, max_size=40).filter(lambda s: s.isprintable()), min_size=1, max_size=6, unique=True)
counts = st.integers(0, 2**40)


@st.composite
def requests(draw):
    problem_ids = draw(ids)
    n, dim = len(problem_ids), draw(st.integers(1, 9))
    dtype = draw(st.sampled_from([np.float16, np.float32]))
    sent = draw(st.sampled_from([None, "int8"]))
    finite = st.floats(-1e4, 1e4, width=16)
    column = {"min_size": n, "max_size": n}
    common = {
        "run_id": draw(names),
        "policy_version": draw(counts),
        "projection": Projection(dim=dim, seed=draw(counts), parameters="0f" * 32, preconditioner=draw(names)),
        "problem_ids": problem_ids,
        "sketches": SketchMatrix.of(draw(hnp.arrays(dtype, (n, dim), elements=finite)), sent),
        "norms": draw(st.none() | st.lists(st.floats(0, 1e6), **column)),
        "tokens": draw(st.none() | st.lists(counts, **column)),
        "rollouts": draw(st.none() | st.lists(counts, **column)),
        "request_id": draw(st.none() | names),
        "epoch": draw(st.none() | counts),
    }
    if draw(st.booleans()):
        return RefreshRequest(**common, aggregation=draw(st.none() | st.sampled_from(AGGREGATIONS)))
    rates = draw(st.none() | st.lists(st.floats(0, 1), **column))
    believing = rates is not None and common["rollouts"] is not None
    return ScoreRequest(
        **common,
        pass_rates=rates,
        strategy=draw(st.none() | st.sampled_from([s for s in STRATEGIES if believing or s != "posterior"])),
        select=draw(st.none() | counts),
        discount=draw(st.none() | st.floats(0, 1)) if believing else None,
    )


@given(requests())
def test_msgpack_round_trip(request):
    decoded = decode_request(type(request), MSGPACK, memoryview(b"".join(encode_request(request))))
    assert decoded.header() == request.header()
    assert bytes(decoded.sketches.data) == bytes(request.sketches.data)


@given(requests())
def test_json_means_what_msgpack_means(request):
    sketches = request.sketches
    whole = np.frombuffer(sketches.data, np.int8).reshape(sketches.rows, -1)
    rows = sketches.numpy() if sketches.scales is None else whole
    text = json.dumps({**request.header(), "sketches": rows.tolist()})
    decoded = decode_request(type(request), JSON, memoryview(text.encode()))
    assert {**decoded.header(), "dtype": None} == {**request.header(), "dtype": None}
    np.testing.assert_array_equal(decoded.sketches.numpy(), request.sketches.numpy())


@given(st.binary(max_size=300), st.sampled_from([MSGPACK, JSON]))
def test_any_bytes_are_refused_in_our_own_words(data, content_type):
    with pytest.raises(GradAlignError, match=r"\w"):
        decode_request(ScoreRequest, content_type, memoryview(data))


@given(requests(), st.data())
def test_a_mutated_body_is_refused_in_our_own_words_or_still_valid(request, data):
    body = bytearray(b"".join(encode_request(request)))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(GradAlignError):
        decode_request(type(request), MSGPACK, memoryview(body))

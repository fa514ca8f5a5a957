"""The bytes of the wire: faults are named, and the bin is viewed in place."""

import bz2
import gzip
import json
import lzma
import zlib

import msgpack
import numpy as np
import pytest

from gradalign import InvalidValue, MalformedRequest, Projection, ScoreRequest, SketchMatrix, UnsupportedMediaType
from gradalign.wire.codec import (
    JSON,
    MAX_HEADER_BYTES,
    MSGPACK,
    decode_arriving,
    decode_request,
    decode_value,
    encode_request,
    split_body,
)

PROJECTION = Projection(dim=8, seed=0, parameters="ab" * 32)


def request(rows=2, **changes):
    sketches = np.arange(rows * 8, dtype=np.float16).reshape(rows, 8)
    ids = [f"p{i}" for i in range(rows)]
    fields = {"run_id": "r", "policy_version": 1, "projection": PROJECTION, "problem_ids": ids}
    return ScoreRequest(**{**fields, "sketches": SketchMatrix.of(sketches), **changes})


def body(*args, **changes):
    return b"".join(encode_request(request(*args, **changes)))


def test_body_is_two_msgpack_objects_for_any_library():
    unpacker = msgpack.Unpacker()
    unpacker.feed(body())
    header, data = list(unpacker)
    assert header["problem_ids"] == ["p0", "p1"]
    assert np.frombuffer(data, "<f2").tolist() == list(range(16))


def test_plain_packs_of_any_library_are_read():
    plain = msgpack.packb(request().header()) + msgpack.packb(bytes(request().sketches.data))
    assert decode_request(ScoreRequest, MSGPACK, memoryview(plain)).header() == request().header()


def test_bin_is_viewed_in_place():
    buffer = bytearray(body())
    decoded = decode_request(ScoreRequest, MSGPACK, memoryview(buffer))
    buffer[-1] ^= 0xFF
    assert bytes(decoded.sketches.data)[-1] == buffer[-1]


def test_header_longer_than_the_first_feed():
    ids = [f"{i:0250d}" for i in range(2000)]
    big = request(2000, problem_ids=ids)
    assert decode_request(ScoreRequest, MSGPACK, memoryview(b"".join(encode_request(big)))).problem_ids == ids


def test_json_body_with_lists():
    text = json.dumps({**request().header(), "sketches": [[1.0] * 8, [2.0] * 8]})
    decoded = decode_request(ScoreRequest, f"{JSON}; charset=utf-8", memoryview(text.encode()))
    assert decoded.sketches.numpy().tolist() == [[1.0] * 8, [2.0] * 8]


@pytest.mark.parametrize("cut", [0, 1, 10, 100, 1000])
def test_truncated_bodies_are_malformed(cut):
    whole = body()
    with pytest.raises(MalformedRequest):
        decode_request(ScoreRequest, MSGPACK, memoryview(whole[: min(cut, len(whole) - 1)]))


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (body()[:-1], "truncated"),
        (body() + b"\x00", "followed by other bytes"),
        (msgpack.packb(request().header()), "ends after its header"),
        (msgpack.packb(request().header()) + msgpack.packb([1.0]), "expected a msgpack bin"),
        (b"\xc1", "not msgpack"),
        (b"\x91" * 5000, "not msgpack"),
        (b"\xdd\xff\xff\xff\xff", "not msgpack"),
        (b"\xdf\xff\xff\xff\xff", "not msgpack"),
        (b"\xdb\xff\xff\xff\xff", "truncated"),
        (b"\xc9\xff\xff\xff\xff\x01", "not msgpack"),
        (b"\x81\x01\x02", "string keys"),
        (b"\x81\xa1\xff\x02", "not msgpack"),
    ],
)
def test_bad_bytes_are_malformed_and_say_how(bad, says):
    with pytest.raises(MalformedRequest, match=says):
        decode_request(ScoreRequest, MSGPACK, memoryview(bad))


def test_a_header_that_is_no_map_is_an_invalid_value():
    with pytest.raises(InvalidValue, match="expected a map"):
        decode_request(ScoreRequest, MSGPACK, memoryview(b"\x07" + msgpack.packb(b"")))


def test_nested_length_bombs_allocate_little():
    import tracemalloc

    tracemalloc.start()
    with pytest.raises(MalformedRequest):
        split_body(memoryview(b"\xdc\x1f\xff" * 1000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 128 << 20


def test_an_endless_header_is_refused_at_the_limit():
    endless = b"\x81\xa1a\xdb\x7f\xff\xff\xff" + b"x" * (MAX_HEADER_BYTES + 10)
    with pytest.raises(MalformedRequest, match=str(MAX_HEADER_BYTES)):
        split_body(memoryview(endless))


def test_other_content_types_are_unsupported():
    with pytest.raises(UnsupportedMediaType, match="text/csv"):
        decode_request(ScoreRequest, "text/csv", memoryview(b"1,2"))


@pytest.mark.parametrize("text", [b"{", b"\xff", b"[" * 100000])
def test_bad_json_is_malformed(text):
    with pytest.raises(MalformedRequest):
        decode_value(text, JSON)


@pytest.mark.parametrize(
    "compress", [gzip.compress, zlib.compress, bz2.compress, lzma.compress, lambda _: b"(\xb5/\xfd rest"]
)
@pytest.mark.parametrize("kind", [JSON, MSGPACK])
def test_compressed_bodies_are_told_from_broken_ones(compress, kind):
    body = compress(b"".join(bytes(part) for part in encode_request(request())))
    for decode in (lambda: decode_request(ScoreRequest, kind, memoryview(body)), lambda: decode_value(body, kind)):
        with pytest.raises(MalformedRequest, match=r"as (gzip|deflate|bzip2|xz|zstd).* does; .*uncompressed"):
            decode()
    if kind == MSGPACK:
        with pytest.raises(MalformedRequest, match="uncompressed"):
            decode_arriving(ScoreRequest, memoryview(body), 10)

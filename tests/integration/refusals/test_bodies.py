"""Bodies that are malformed, too large, of another type or coding: refused, in the wire's own words, and nothing stored."""

import gzip
import json
import struct

import msgpack
import numpy as np
import pytest
from badrequests import JSON, MSGPACK, check
from rawhttp import read_reply

from gradalign import RefreshRequest, ScoreRequest, SketchMatrix
from gradalign.wire.codec import encode_request


def request_head(path, length):
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/msgpack\r\nContent-Length: {length}\r\n\r\n"
    return head.encode()


def everything(raw):
    return b"".join(iter(lambda: raw.recv(65536), b""))


# Bodies that are no request, and words of the error.
BODIES = {
    "empty": (b"", "does not end"),
    "no msgpack at all": (b"\xc1" * 100, "not msgpack"),
    "header cut": (msgpack.packb({"run_id": "x" * 50})[:20], "does not end"),
    "no bin": (msgpack.packb({"run_id": "x"}), "ends after its header"),
    "a list for the bin": (msgpack.packb({}) + msgpack.packb([1, 2]), "expected a msgpack bin"),
    "bin cut": (msgpack.packb({}) + b"\xc6" + struct.pack(">I", 1000) + b"1234", "truncated"),
    "bin of 4 GiB declared": (msgpack.packb({}) + b"\xc6\xff\xff\xff\xff" + b"1234", "truncated"),
    "bytes behind the bin": (msgpack.packb({}) + msgpack.packb(b"12") + b"x", "followed by other bytes"),
    "deep nesting": (b"\x91" * 100_000, "not msgpack"),
    "deep maps": (b"\x81\xa1a" * 50_000, "not msgpack"),
    "list of 2^32 declared": (b"\x81\xa1a\xdd\xff\xff\xff\xff", "not msgpack"),
    "map of 2^32 declared": (b"\xdf\xff\xff\xff\xff", "not msgpack"),
    "string of 4 GiB declared": (b"\x81\xa1a\xdb\xff\xff\xff\xff" + b"x" * 50, "does not end"),
    "bin of 4 GiB in the header": (b"\x81\xa1a\xc6\xff\xff\xff\xff" + b"x" * 50, "does not end"),
    "an extension type": (b"\x81\xa1a\xc7\x05\x01hello", "not msgpack"),
    "a map with integer keys": (msgpack.packb({1: 2}) + msgpack.packb(b""), "not msgpack"),
    "many lists of many": (b"\x9f" + b"\xdc\x1f\xff" * 15, "does not end"),
}


class TestMalformed:
    """400: the bytes are not what the Content-Type says."""

    @pytest.mark.parametrize("path", ["/score", "/refresh_validation"])
    @pytest.mark.parametrize("name", BODIES)
    def test_msgpack(self, http, stored, name, path):
        body, words = BODIES[name]
        before = stored()
        error = check(http.post(path, content=body, headers=MSGPACK), 400, "malformed")
        assert words in error["message"] or name in ("string of 4 GiB declared", "bin of 4 GiB in the header")
        assert stored() == before

    @pytest.mark.parametrize("path", ["/score", "/refresh_validation", "/select"])
    @pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b'{"a": }', b"[" * 100_000, b'{"a":' * 50_000])
    def test_json(self, http, stored, path, body):
        before = stored()
        check(http.post(path, content=body, headers=JSON), 400, "malformed", "not JSON")
        assert stored() == before

    def test_msgpack_select(self, http, stored):
        before = stored()
        check(http.post("/select", content=b"\xc1", headers=MSGPACK), 400, "malformed", "not msgpack")
        assert stored() == before


class TestMediaType:
    """415: neither msgpack nor JSON."""

    @pytest.mark.parametrize("path", ["/score", "/refresh_validation", "/select"])
    @pytest.mark.parametrize("headers", [{}, {"Content-Type": "text/plain"}, {"Content-Type": "multipart/form-data"}])
    def test_is_refused(self, http, stored, path, headers):
        before = stored()
        reply = http.post(path, content=b"{}", headers=headers)
        check(reply, 415, "unsupported_media_type", "application/msgpack", "application/json", param="Content-Type")
        assert stored() == before


class TestTooLarge:
    """413: answered before the body is read."""

    @pytest.mark.parametrize("path", ["/score", "/refresh_validation", "/select", "/v1/score"])
    def test_ten_gigabytes_announced(self, scorer, stored, path):
        before = stored()
        with scorer.connect() as raw:
            raw.sendall(request_head(path, 10_000_000_000))
            reply = everything(raw)
        assert reply.startswith(b"HTTP/1.1 413 ")
        assert b'"type":"too_large"' in reply
        assert b"10000000000 bytes long" in reply
        # All of a /select becomes Python objects, so it is held to the limit of JSON.
        assert (b"GRADALIGN_MAX_JSON_BYTES" if path == "/select" else b"GRADALIGN_MAX_BODY_BYTES") in reply
        assert b"connection: close" in reply.lower()
        assert stored() == before

    def test_expect_continue_is_not_continued(self, scorer):
        with scorer.connect() as raw:
            raw.sendall(
                b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/msgpack\r\n"
                b"Content-Length: 10000000000\r\nExpect: 100-continue\r\n\r\n"
            )
            assert everything(raw).startswith(b"HTTP/1.1 413 ")

    def test_json_has_a_limit_of_its_own(self, scorer):
        with scorer.connect() as raw:
            raw.sendall(
                b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100000000\r\n\r\n"
            )
            reply = everything(raw)
        assert reply.startswith(b"HTTP/1.1 413 ")
        assert b"GRADALIGN_MAX_JSON_BYTES" in reply

    def test_chunks_are_counted_as_they_come(self, start_scorer, stored):
        small = start_scorer(MAX_BODY_BYTES="4096")
        before = stored()

        def chunks():
            for _ in range(50):
                yield b"x" * 1000

        with small.http() as http:
            check(http.post("/score", content=chunks(), headers=MSGPACK), 413, "too_large", "4096 bytes")
            check(http.post("/score", content=b"x" * 5000, headers=MSGPACK), 413, "too_large", "5000 bytes long")
            assert http.get("/livez").status_code == 200
        assert stored() == before


def test_a_connection_that_breaks_mid_body_stores_nothing(scorer, run, stored, problem_ids, projection, sketches):
    request = ScoreRequest(
        run_id=run.run_id,
        policy_version=9,
        projection=projection,
        problem_ids=problem_ids,
        sketches=SketchMatrix.of(sketches),
    )
    body = b"".join(encode_request(request))
    before = stored()
    for part in (0, 10, len(body) // 2, len(body) - 1):
        with scorer.connect() as raw:
            raw.sendall(request_head("/score", len(body)) + body[:part])
    assert run.score(problem_ids, sketches, policy_version=5, projection=projection).policy_version == 5
    assert {key for key in stored() if run.run_id.encode() not in key} == {
        key for key in before if run.run_id.encode() not in key
    }
    assert run.run().policy_version == 5


def test_errors_come_in_the_accepted_encoding(http):
    reply = http.post("/score", content=b"\xc1", headers={**MSGPACK, "Accept": "application/msgpack"})
    assert reply.headers["Content-Type"] == "application/msgpack"
    assert msgpack.unpackb(reply.content)["error"]["type"] == "malformed"


def test_refusals_name_their_request(http, run_id, problem_ids, projection):
    zero = SketchMatrix.of(np.zeros((8, 32), dtype=np.float16))
    request = RefreshRequest(
        run_id=run_id, policy_version=1, projection=projection, problem_ids=problem_ids, sketches=zero, request_id="abc"
    )
    reply = http.post("/refresh_validation", content=b"".join(encode_request(request)), headers=MSGPACK)
    assert check(reply, 422, "invalid_value")["request_id"] == "abc"


CODINGS = ["gzip", "x-gzip", "deflate", "br", "zstd", "GZIP", "gzip, identity", "identity, br", "nonsense"]


@pytest.mark.parametrize("path", ["/score", "/v1/refresh_validation", "/select"])
def test_a_content_encoding_is_refused_before_the_body(scorer, stored, path):
    before = stored()
    for coding in CODINGS:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Encoding: {coding}\r\n"
        with scorer.connect() as raw:  # of whose body nothing is sent
            raw.sendall(f"{head}Content-Length: 1000\r\n\r\n".encode())
            status, headers, body = read_reply(raw)
        assert (status, headers["accept-encoding"], headers["connection"]) == (415, "identity", "close")
        error = json.loads(body)["error"]
        assert (error["type"], error["param"]) == ("unsupported_media_type", "Content-Encoding")
        assert f"Content-Encoding is {coding!r}" in error["message"]
        assert "uncompressed" in error["message"]
    assert stored() == before


@pytest.mark.parametrize("coding", ["identity", "Identity", "", "identity , identity"])
def test_identity_is_no_coding(run, http, coding):
    body = {"run_id": run.run_id, "policy_version": 5, "count": 1}
    assert http.post("/select", json=body, headers={"Content-Encoding": coding}).status_code == 200


@pytest.mark.parametrize("path", ["/score", "/refresh_validation", "/select"])
@pytest.mark.parametrize("kind", ["application/json", "application/msgpack"])
def test_a_body_that_was_compressed_without_a_word_is_told_so(http, stored, path, kind):
    before = stored()
    reply = http.post(path, content=gzip.compress(b"{}" * 500), headers={"Content-Type": kind})
    check(reply, 400, "malformed", "0x1f8b, as gzip does", "uncompressed")
    assert stored() == before

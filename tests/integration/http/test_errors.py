"""Every refusal of the wire, sent to a real server: status, type and message; nothing stored; the next request works."""

import asyncio
import gzip
import json
import struct

import msgpack
import numpy as np
import pytest
from rawhttp import read_reply

from gradalign import AsyncClient, Client, RefreshRequest, ScoreRequest, SketchMatrix
from gradalign.wire.codec import encode_request
from gradalign.wire.projection import Projection

MSGPACK = {"Content-Type": "application/msgpack"}
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def http(scorer):
    with scorer.http() as client:
        yield client


@pytest.fixture
def client(scorer, run_id):
    with Client(scorer.url, run_id=run_id, retries=0) as client:
        yield client


@pytest.fixture
def run(client, problem_ids, sketches, projection):
    """A run at policy version 5, epoch 2, validation version 1."""
    client._calls.epoch = 2
    client.refresh_validation(problem_ids, sketches, policy_version=5, projection=projection)
    client.score(problem_ids, sketches, policy_version=5, projection=projection)
    client._calls.epoch = None
    return client


def header(run_id, problem_ids, projection, /, **changes):
    good = {
        "run_id": run_id,
        "policy_version": 5,
        "projection": projection.to_map(),
        "problem_ids": problem_ids,
        "dtype": "float16",
    }
    return {key: value for key, value in {**good, **changes}.items() if value is not ...}


def packed(header, data):
    return msgpack.packb(header) + msgpack.packb(bytes(data))


def check(reply, status, kind, *words, param=None):
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(error) == {"type", "message", "param", "request_id"}
    assert error["type"] == kind
    for word in words:
        assert word in error["message"], error["message"]
    if param is not None:
        assert error["param"] == param
    return error


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


# Changes of the header that make it invalid: what the error names, and words of its message.
INVALID = {
    "run_id missing": ({"run_id": ...}, "run_id", "missing"),
    "run_id with a space": ({"run_id": "a b"}, "run_id", "'a b'"),
    "run_id too long": ({"run_id": "a" * 129}, "run_id", "1 to 128"),
    "policy_version missing": ({"policy_version": ...}, "policy_version", "missing"),
    "policy_version negative": ({"policy_version": -1}, "policy_version", "-1"),
    "policy_version a string": ({"policy_version": "5"}, "policy_version", "'5'"),
    "policy_version true": ({"policy_version": True}, "policy_version", "True"),
    "policy_version a float": ({"policy_version": 5.5}, "policy_version", "5.5"),
    "an unknown key": ({"pass_rate": [1.0]}, "pass_rate", "unknown key"),
    "no ids": ({"problem_ids": []}, "problem_ids", "holds 0 ids"),
    "ids a string": ({"problem_ids": "p0"}, "problem_ids", "list of strings"),
    "an empty id": ({"problem_ids": ["p0", "", *"cdefgh"]}, "problem_ids[1]", "1 to 256"),
    "an id too long": ({"problem_ids": ["x" * 257, *"bcdefgh"]}, "problem_ids[0]", "256"),
    "an id that is a number": ({"problem_ids": [1, *"bcdefgh"]}, "problem_ids[0]", "1"),
    "a repeated id": ({"problem_ids": ["p0", "p0", *"cdefgh"]}, "problem_ids", "repeats 'p0'"),
    "one id too many": ({"problem_ids": [f"p{i}" for i in range(9)]}, "sketches", "expected 576"),
    "ids beyond the limit": ({"problem_ids": [f"p{i}" for i in range(4097)]}, "problem_ids", "1 to 4096"),
    "an unknown dtype": ({"dtype": "float64"}, "dtype", "float32"),
    "a dtype of another size": ({"dtype": "float32"}, "sketches", "expected 1024"),
    "norms too few": ({"norms": [1.0]}, "norms", "1 values for 8"),
    "norms negative": ({"norms": [-1.0] * 8}, "norms[0]", "-1.0"),
    "norms infinite": ({"norms": [float("inf")] * 8}, "norms[0]", "inf"),
    "tokens a float": ({"tokens": [1.5] * 8}, "tokens[0]", "1.5"),
    "an empty request id": ({"request_id": ""}, "request_id", "1 to 128"),
    "an epoch that is no number": ({"epoch": "two"}, "epoch", "'two'"),
    "projection a string": ({"projection": "p"}, "projection", "exactly the keys"),
}
INVALID_SCORES = {
    "pass_rates above 1": ({"pass_rates": [1.5] * 8}, "pass_rates[0]", "1.5"),
    "pass_rates NaN": ({"pass_rates": [float("nan")] * 8}, "pass_rates[0]", "nan"),
    "an unknown strategy": ({"strategy": "best"}, "strategy", "cosine"),
    "dots alone": ({"dots": [0.0] * 8}, "dots_version", "go together"),
    "select negative": ({"select": -1}, "select", "-1"),
    "pass_rates needed": ({"strategy": "accgreedy"}, "pass_rates", "accgreedy"),
    "pass_rates needed too": ({"strategy": "cosine_accuracy"}, "pass_rates", "cosine_accuracy"),
    "dots longer than norms": (
        {"dots": [3.0] * 8, "dots_version": 1, "norms": [1.0] * 8},
        "dots",
        "Divide the validation gradient by its norm",
    ),
}
INVALID_REFRESHES = {
    "an unknown aggregation": ({"aggregation": "median"}, "aggregation", "pooled"),
    "a key of /score": ({"strategy": "cosine"}, "strategy", "unknown key"),
    "tokens all 0": ({"tokens": [0] * 8}, "sketches", "0 tokens"),
}


class TestInvalidValue:
    """422: well-formed, but a length, dimension, value or name is wrong."""

    @pytest.mark.parametrize("path", ["/score", "/refresh_validation"])
    @pytest.mark.parametrize("name", INVALID)
    def test_shared_keys(self, run, http, stored, problem_ids, projection, sketches, name, path):
        self.refuse(run, http, stored, path, problem_ids, projection, sketches, INVALID[name])

    @pytest.mark.parametrize("name", INVALID_SCORES)
    def test_score(self, run, http, stored, problem_ids, projection, sketches, name):
        self.refuse(run, http, stored, "/score", problem_ids, projection, sketches, INVALID_SCORES[name])

    @pytest.mark.parametrize("name", INVALID_REFRESHES)
    def test_refresh(self, run, http, stored, problem_ids, projection, sketches, name):
        self.refuse(
            run, http, stored, "/refresh_validation", problem_ids, projection, sketches, INVALID_REFRESHES[name]
        )

    def refuse(self, run, http, stored, path, problem_ids, projection, sketches, case):
        changes, param, words = case
        body = packed(header(run.run_id, problem_ids, projection, **changes), sketches.tobytes())
        before = stored()
        check(http.post(path, content=body, headers=MSGPACK), 422, "invalid_value", words, param=param)
        assert stored() == before
        assert run.score(problem_ids, sketches, policy_version=5, projection=projection).problem_ids

    def test_a_header_that_is_no_map(self, http):
        body = msgpack.packb([1]) + msgpack.packb(b"")
        check(
            http.post("/score", content=body, headers=MSGPACK), 422, "invalid_value", "expected a map", param="header"
        )

    def test_a_projection_id_of_another_projection(self, http, run_id, problem_ids, projection, sketches):
        wrong = {**projection.to_map(), "id": "0" * 16}
        body = packed(header(run_id, problem_ids, projection, projection=wrong), sketches.tobytes())
        check(
            http.post("/score", content=body, headers=MSGPACK),
            422,
            "invalid_value",
            projection.id,
            param="projection.id",
        )

    @pytest.mark.parametrize("fill", [0.0, np.nan, np.inf])
    def test_a_validation_set_without_signal(self, http, stored, run_id, problem_ids, projection, fill):
        sketches = np.full((8, 32), fill, dtype=np.float32)
        body = packed(header(run_id, problem_ids, projection, dtype="float32"), sketches.tobytes())
        before = stored()
        reply = http.post("/refresh_validation", content=body, headers=MSGPACK)
        check(reply, 422, "invalid_value", "none of the 8", "more rollouts", param="sketches")
        assert stored() == before

    @pytest.mark.parametrize(
        ("change", "param"),
        [
            ({"count": 0}, "count"),
            ({"exploration": 2}, "exploration"),
            ({"half_life": 0}, "half_life"),
            ({"top": 3}, "top"),
        ],
    )
    def test_select(self, run, http, stored, change, param):
        before = stored()
        body = {"run_id": run.run_id, "policy_version": 5, "count": 3, **change}
        check(http.post("/select", json=body), 422, "invalid_value", param=param)
        assert stored() == before

    @pytest.mark.parametrize(
        ("path", "param"),
        [
            ("problems?limit=0", "limit"),
            ("problems?limit=abc", "limit"),
            ("problems?limit=" + "9" * 5000, "limit"),
            ("problems?cursor=%20", "cursor"),
            ("rounds?after=-1", "after"),
            ("rounds?limit=1001", "limit"),
        ],
    )
    def test_queries(self, run, http, path, param):
        check(http.get(f"/runs/{run.run_id}/{path}"), 422, "invalid_value", param=param)

    def test_epoch_in_a_query(self, run, http, stored):
        before = stored()
        check(http.delete(f"/runs/{run.run_id}?epoch=x"), 422, "invalid_value", param="epoch")
        check(http.post(f"/runs/{run.run_id}/snapshots/a%20b"), 422, "invalid_value", param="name")
        assert stored() == before


class TestNotFound:
    """404: unknown run, problem, snapshot or route."""

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("GET", "/runs/never-seen"),
            ("GET", "/runs/never-seen/problems"),
            ("GET", "/runs/never-seen/problems/p"),
            ("GET", "/runs/never-seen/rounds"),
            ("POST", "/runs/never-seen/snapshots/a"),
            ("POST", "/runs/never-seen/snapshots/a/restore"),
            ("DELETE", "/runs/never-seen"),
        ],
    )
    def test_unknown_run(self, http, stored, method, path):
        before = stored()
        check(http.request(method, path), 404, "not_found", "'never-seen'", "GET /runs lists them", param="run_id")
        assert stored() == before

    def test_selecting_from_an_unknown_run(self, http, stored):
        before = stored()
        reply = http.post("/select", json={"run_id": "never-seen", "policy_version": 1, "count": 1, "request_id": "q"})
        assert check(reply, 404, "not_found", "'never-seen'", param="run_id")["request_id"] == "q"
        assert stored() == before

    def test_unknown_problem_and_snapshot(self, run, http, stored):
        before = stored()
        check(http.get(f"/runs/{run.run_id}/problems/nope"), 404, "not_found", "'nope'", param="problem_id")
        reply = http.post(f"/runs/{run.run_id}/snapshots/nope/restore")
        check(reply, 404, "not_found", "'nope'", param="name")
        assert stored() == before

    def test_unknown_route_and_method(self, http):
        check(http.get("/scores"), 404, "not_found", "GET /scores", "/docs")
        check(http.get("/score/"), 404, "not_found")
        reply = http.get("/score")
        check(reply, 405, "method_not_allowed", "POST")
        assert reply.headers["Allow"] == "POST"

    @pytest.mark.parametrize(
        ("method", "path", "allow"),
        [
            ("PUT", "/score", "POST"),
            ("HEAD", "/score", "POST"),
            ("POST", "/readyz", "GET, HEAD"),
            ("PATCH", "/", "GET, HEAD"),
            ("POST", "/runs", "GET, HEAD"),
            ("POST", "/runs/r", "DELETE, GET, HEAD"),
            ("PUT", "/v1/runs/r", "DELETE, GET, HEAD"),
            ("DELETE", "/runs/r/problems/a/b", "GET, HEAD"),
            ("GET", "/runs/r/snapshots/s", "POST"),
            ("GET", "/v1/runs/r/snapshots/s/restore", "POST"),
            ("POST", "/openapi.json", "GET, HEAD"),
        ],
    )
    def test_a_method_that_a_path_does_not_take_is_told_which_it_does(self, http, method, path, allow):
        reply = http.request(method, path)
        assert reply.status_code == 405
        assert ", ".join(sorted(reply.headers["Allow"].split(", "))) == allow
        if method != "HEAD":
            check(reply, 405, "method_not_allowed", f"{method} {path}; this path takes {reply.headers['Allow']}")


class TestConflict:
    """409: the request disagrees with what the run holds."""

    @pytest.fixture
    def refused(self, run, http, stored, problem_ids, projection, sketches):
        def refused(path, kind, *words, param, **changes):
            body = packed(header(run.run_id, problem_ids, projection, **changes), sketches.tobytes())
            before = stored()
            error = check(http.post(path, content=body, headers=MSGPACK), 409, kind, *words, param=param)
            assert error["request_id"] == changes.get("request_id")
            assert stored() == before
            assert run.score(problem_ids, sketches, policy_version=5, projection=projection).problem_ids

        return refused

    @pytest.mark.parametrize("path", ["/score", "/refresh_validation"])
    def test_projection_mismatch(self, refused, projection, path):
        other = Projection(dim=32, seed=4, parameters=projection.parameters)
        words = ("seed=4", "seed=3", "another run_id")
        refused(path, "projection_mismatch", *words, param="projection", projection=other.to_map(), request_id="a")

    @pytest.mark.parametrize("path", ["/score", "/refresh_validation"])
    def test_stale_policy(self, refused, path):
        refused(
            path, "stale_policy", "policy_version 4", "has seen 5", "snapshot", param="policy_version", policy_version=4
        )

    @pytest.mark.parametrize("path", ["/score", "/refresh_validation"])
    def test_fenced(self, refused, path):
        refused(path, "fenced", "epoch 1", "epoch 2", "higher epoch", param="epoch", epoch=1)

    def test_dots_of_another_validation_version(self, refused):
        changes = {"dots": [0.0] * 8, "dots_version": 7}
        refused("/score", "validation_mismatch", "7", "version 1", param="dots_version", **changes)

    @pytest.mark.parametrize("path", ["/score", "/refresh_validation"])
    def test_request_id_of_another_request(self, run, refused, problem_ids, projection, sketches, path):
        run.score(problem_ids, sketches, policy_version=5, projection=projection, request_id="mine", select=1)
        refused(path, "request_id_reused", "'mine'", param="request_id", request_id="mine", select=...)

    @pytest.mark.parametrize("strategy", [None, "cosine", "dot", "anti", "cosine_accuracy", "diverse"])
    def test_validation_missing(self, http, stored, run_id, problem_ids, projection, sketches, strategy):
        changes = {"strategy": strategy, "pass_rates": [0.5] * 8}
        body = packed(header(run_id, problem_ids, projection, **changes), sketches.tobytes())
        before = stored()
        reply = http.post("/score", content=body, headers=MSGPACK)
        check(reply, 409, "validation_missing", "/refresh_validation first", "norm, learnalign", param="strategy")
        assert stored() == before

    def test_routes_without_sketches_are_fenced_too(self, run, http, stored):
        before = stored()
        select = {"run_id": run.run_id, "policy_version": 5, "count": 1}
        check(http.post("/select", json={**select, "epoch": 1}), 409, "fenced", param="epoch")
        check(http.post("/select", json={**select, "policy_version": 4}), 409, "stale_policy", param="policy_version")
        for method, path in (("POST", "/snapshots/a"), ("DELETE", "")):
            check(http.request(method, f"/runs/{run.run_id}{path}?epoch=1"), 409, "fenced", param="epoch")
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


def test_json_refuses_what_msgpack_refuses(run, http, stored, problem_ids, projection, sketches):
    good = {**header(run.run_id, problem_ids, projection, dtype=...), "sketches": sketches.tolist()}
    before = stored()
    for change, param in (
        ({"sketches": sketches[:3].tolist()}, "sketches"),
        ({"sketches": sketches[:, :5].tolist()}, "sketches"),
        ({"sketches": [["a"] * 32] * 8}, "sketches"),
        ({"sketches": [[1.0], [1.0, 2.0]]}, "sketches"),
        ({"sketches": ...}, "sketches"),
        ({"select": "many"}, "select"),
    ):
        body = {key: value for key, value in {**good, **change}.items() if value is not ...}
        check(http.post("/score", json=body), 422, "invalid_value", param=param)
    check(http.post("/score", content=b"[]", headers=JSON), 422, "invalid_value", param="body")
    assert stored() == before
    assert http.post("/score", content=json.dumps(good), headers=JSON).status_code == 200


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


# What JSON can write and no cell, column or setting can hold.
NO_NUMBERS = ["1e999", "-1e999", "9" * 400, "9" * 5000, '"1.5"', "true", "[]", "{}"]
NO_COUNTS = [*NO_NUMBERS, "1.5", str(2**53), str(2**63), str(2**64), "-1"]


class TestJsonValues:
    """Whatever a JSON body holds where a number or an id belongs, it is a 422 that says where."""

    def refuse(self, http, stored, path, good, changes, texts):
        before = stored()
        for text in texts:
            for name, change in changes.items():
                for accept in ("application/json", "application/msgpack"):
                    content = json.dumps({**good, **change}).replace('"@"', text)
                    reply = http.post(path, content=content, headers={**JSON, "Accept": accept})
                    assert reply.status_code == 422, (name, text, reply.text)
                error = http.post(path, content=content, headers=JSON).json()["error"]
                assert error["param"] in (name, name.split("[")[0], "body"), (name, text)
                assert name in error["message"] or error["param"] == "body", (name, text)
        assert stored() == before

    def good(self, run, problem_ids, projection, sketches):
        return header(run.run_id, problem_ids, projection, dtype=..., sketches=sketches.tolist())

    def test_cells(self, run, http, stored, problem_ids, projection, sketches):
        rows = sketches.tolist()
        changes = {
            "sketches[3][1]": {"sketches": [*rows[:3], [rows[3][0], "@", *rows[3][2:]], *rows[4:]]},
            "features[3][1]": {"features": [*[[0.5, 1.0]] * 3, [0.5, "@"], *[[0.5, 1.0]] * 4]},
            "dots[3]": {"dots": [0, 0, 0, "@", 0, 0, 0, 0], "dots_version": 1},
        }
        for name in ("norms", "pass_rates", "rollouts", "tokens"):
            changes[f"{name}[3]"] = {name: [0, 0, 0, "@", 0, 0, 0, 0]}
        good = self.good(run, problem_ids, projection, sketches)
        self.refuse(http, stored, "/score", good, changes, [*NO_NUMBERS, "null"])

    def test_settings(self, run, http, stored, problem_ids, projection, sketches):
        good = {**self.good(run, problem_ids, projection, sketches), "dots": [0] * 8, "dots_version": 1}
        changes = {name: {name: "@"} for name in ("policy_version", "epoch", "select", "dots_version")}
        self.refuse(http, stored, "/score", good, changes, NO_COUNTS)
        for name in ("dim", "seed", "layout"):
            changes = {f"projection.{name}": {"projection": {**projection.to_map(), name: "@"}}}
            self.refuse(http, stored, "/score", good, changes, NO_COUNTS)

    def test_settings_of_refresh_and_select(self, run, http, stored, problem_ids, projection, sketches):
        good = self.good(run, problem_ids, projection, sketches)
        self.refuse(http, stored, "/refresh_validation", good, {"decay": {"decay": "@"}}, [*NO_NUMBERS, "1.5"])
        select = {"run_id": run.run_id, "policy_version": 5, "count": 1}
        counts = {name: {name: "@"} for name in ("policy_version", "count", "cooldown", "seed", "epoch")}
        self.refuse(http, stored, "/select", select, counts, NO_COUNTS)
        numbers = {name: {name: "@"} for name in ("half_life", "exploration")}
        self.refuse(http, stored, "/select", select, numbers, [*NO_NUMBERS, "-1"])

    @pytest.mark.parametrize("path", ["/score", "/refresh_validation", "/select"])
    def test_half_of_a_surrogate_pair_in_any_text(self, run, http, stored, problem_ids, projection, sketches, path):
        good = self.good(run, problem_ids, projection, sketches)
        good = {"run_id": run.run_id, "policy_version": 5, "count": 1} if path == "/select" else good
        places = [{"problem_ids": ["@", *problem_ids[1:]]}, {"run_id": "@"}, {"request_id": "@"}, {"@": 1}]
        places += [{"strategy": "@"}, {"aggregation": "@"}, {"projection": "@"}, {"projection": {"@": 1}}]
        before = stored()
        for place in places:
            for text in ("\\ud800", "a\\udfff"):
                content = json.dumps({**good, **place}).replace("@", text)
                for accept in ("application/json", "application/msgpack"):
                    reply = http.post(path, content=content, headers={**JSON, "Accept": accept})
                    assert reply.status_code == 422, (place, reply.text)
        assert stored() == before

    def test_ext_types_and_other_keys_of_msgpack(self, run, http, stored, problem_ids, projection, sketches):
        good, before = header(run.run_id, problem_ids, projection), stored()
        for value in (msgpack.ExtType(5, b""), msgpack.ExtType(5, b"x"), msgpack.Timestamp(1), {1: 2}, {b"a": 1}, b"r"):
            for name in (*good, "norms", "tokens", "request_id", "strategy"):
                body = packed({**good, name: value}, sketches.tobytes())
                assert http.post("/score", content=body, headers=MSGPACK).status_code in (400, 422), (name, value)
        for key in (1, b"a", (1,), True):
            body = packed({**good, key: 1}, sketches.tobytes())
            assert http.post("/score", content=body, headers=MSGPACK).status_code in (400, 422), key
        assert stored() == before

    def test_ids_and_names_in_paths(self, run, http, stored):
        before = stored()
        for name in ("%ED%A0%80", "%FF", "%00", "a%0Ab", "%2E%2E%2F", "x" * 300, "%F0%9F%98%80"):
            for path in (f"/runs/{name}", f"/runs/{run.run_id}/problems/{name}"):
                assert http.get(path).status_code in (404, 422), path
            for path in (f"/runs/{name}/snapshots/s", f"/runs/{run.run_id}/snapshots/{name}"):
                assert http.post(path).status_code in (404, 422), path
        assert stored() == before


def test_every_path_that_is_read_answers_head_as_get_without_its_body(scorer, run):
    with scorer.http() as http:
        paths = [path for path, methods in http.get("/openapi.json").json()["paths"].items() if "get" in methods]
    paths = [path.format(run=run.run_id, problem_id="p0") for path in paths]
    assert len(paths) > 8
    wired = [f"/v1{path}" for path in paths if path.startswith("/runs")]
    for path in (*paths, *wired, "/", "/docs", "/openapi.json", "/assets/api.js", "/runs/nobody"):
        with scorer.connect() as raw:  # with two requests, to see where the first reply ends
            raw.sendall(f"HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\nGET /livez HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            received = b""
            while b"alive" not in received:
                received += raw.recv(1 << 16)
        head, _, rest = received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 404" if path == "/runs/nobody" else b"HTTP/1.1 200"), path
        assert rest.startswith(b"HTTP/1.1 200"), (path, rest[:80])
        if not path.endswith("/events"):
            with scorer.http() as http:
                assert dict(http.head(path).headers).keys() == dict(http.get(path).headers).keys()


IDS = [
    ".",
    "..",
    "...",
    "a/b",
    "/",
    "//",
    "../..",
    "a/../b",
    "?",
    "a?b=c",
    "#",
    "%",
    "%2E%2E",
    "%2F",
    " ",
    "é",
    "題",
    "\n",
    ";",
]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_client_reaches_problems_runs_and_snapshots_of_any_name(scorer, projection, asynchronous):
    sketches = np.random.default_rng(0).standard_normal((len(IDS), projection.dim)).astype(np.float16)

    async def ask(run_id, name):
        async with AsyncClient(scorer.url, run_id=run_id, retries=0) as client:
            await client.refresh_validation(IDS, sketches, policy_version=0, projection=projection)
            await client.score(IDS, sketches, policy_version=0, projection=projection)
            found = [(await client.problem(each)).problem_id for each in IDS]
            await client.snapshot(name)
            await client.restore(name)
            state = await client.run()
            await client.delete_run()
            return found, state.run_id, [each.run_id for each in await client.runs()]

    def ask_blocking(run_id, name):
        with Client(scorer.url, run_id=run_id, retries=0) as client:
            client.refresh_validation(IDS, sketches, policy_version=0, projection=projection)
            client.score(IDS, sketches, policy_version=0, projection=projection)
            found = [client.problem(each).problem_id for each in IDS]
            client.snapshot(name)
            client.restore(name)
            state = client.run()
            client.delete_run()
            return found, state.run_id, [each.run_id for each in client.runs()]

    for name in (".", ".."):
        found, run_id, left = asyncio.run(ask(name, name)) if asynchronous else ask_blocking(name, name)
        assert (found, run_id) == (IDS, name)
        assert name not in left

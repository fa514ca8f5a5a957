"""Limits on all that a stranger may send: heads, paths, queries, nesting, lists, and the memory that parsing takes."""

import time

import msgpack
import psutil
import pytest

JSON = {"Content-Type": "application/json"}
MSGPACK = {"Content-Type": "application/msgpack"}
MIB = 1 << 20


LIMITS = {"MAX_BODY_BYTES": "4194304", "MAX_ADMITTED_BYTES": "8388608", "MAX_JSON_BYTES": "1048576"}


@pytest.fixture(scope="module")
def small(scorer, valkey_url):
    """A scorer with low limits."""
    process = type(scorer)(valkey_url, BODY_SECONDS="1", **LIMITS)
    yield process
    assert "Traceback" not in process.log.read_text()
    process.end()


@pytest.fixture
def http(small):
    with small.http() as client:
        yield client


def refused(reply, status, kind, *words):
    assert (reply.status_code, reply.json()["error"]["type"]) == (status, kind), reply.text[:500]
    for word in words:
        assert word in reply.json()["error"]["message"]


def everything(raw):
    parts = []
    try:
        while part := raw.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def endless(raw, start, part, seconds=20):
    """Send without an end; what came back, and how much was taken."""
    sent, deadline = 0, time.monotonic() + seconds
    try:
        raw.sendall(start)
        while sent < 200 * MIB and time.monotonic() < deadline:
            raw.sendall(part)
            sent += len(part)
    except OSError:
        pass
    return everything(raw), sent


class TestHeads:
    @pytest.mark.parametrize(
        ("start", "part"),
        [
            (b"GET /livez HTTP/1.1\r\nHost: x\r\nX-A: ", b"a" * 65536),
            (b"GET /livez HTTP/1.1\r\nHost: x\r\n", b"X-A: b\r\n" * 8192),
            (b"GET /", b"a" * 65536),
            (b"GET /livez HTTP/1.1\r\nHost: x\r\n", b"a" * 65536),
            (
                b"POST /select HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
                b"0\r\nX-Trailer: ",
                b"a" * 65536,
            ),
        ],
        ids=["one header", "many headers", "path", "a header's name", "trailer"],
    )
    def test_one_without_an_end_is_cut_off(self, small, start, part):
        before = psutil.Process(small.process.pid).memory_info().rss
        with small.connect() as raw:
            reply, sent = endless(raw, start, part)
        assert sent < 20 * MIB
        if reply:  # the kernel may drop what was answered when more came behind
            assert reply.startswith((b"HTTP/1.1 413 ", b"HTTP/1.1 400 "))
        assert psutil.Process(small.process.pid).memory_info().rss - before < 32 * MIB

    @pytest.mark.parametrize("size", [40_000, 64_000])
    def test_a_large_one_within_the_limit_is_served_again_and_again(self, http, size):
        for _ in range(3):
            assert http.get("/livez", headers={"X-Large": "x" * size}).status_code == 200

    @pytest.mark.parametrize("where", ["header", "path", "query"])
    def test_one_just_above_is_refused(self, http, where):
        text = "x" * 33_000
        path = {"header": "/livez", "path": f"/runs/{text}", "query": f"/runs?{text}"}[where]
        headers = {"X-One": text} | ({"X-Two": text} if where == "header" else {})
        reply = http.get(path, headers=headers)
        refused(reply, 413, "too_large", "65536 bytes")
        assert reply.headers["Connection"] == "close"

    def test_a_body_is_not_counted(self, http):
        refused(http.post("/score", content=b"\xc1" * 2 * MIB, headers=MSGPACK), 400, "malformed")
        refused(http.post("/score", content=iter([b"\xc1" * MIB] * 2), headers=MSGPACK), 400, "malformed")

    @pytest.mark.parametrize("start", [b"", b"GET /livez HTTP/1.1\r\nHost:", b"\r\n"])
    def test_one_that_does_not_come_is_given_up(self, small, start):
        began = time.monotonic()
        with small.connect() as raw:
            raw.sendall(start)
            reply = everything(raw)
        assert time.monotonic() - began > 0.5
        assert reply.startswith(b"HTTP/1.1 400 ")
        assert b"within 1 s" in reply

    def test_a_second_request_on_a_connection_is_given_up_too(self, small):
        with small.connect() as raw:
            raw.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            reply = b""
            while not reply.endswith(b"}"):
                reply += raw.recv(65536)
            assert reply.startswith(b"HTTP/1.1 200 ")
            raw.sendall(b"GET /livez HT")
            assert everything(raw).startswith(b"HTTP/1.1 400 ")

    @pytest.mark.parametrize("junk", [b"junk\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/9.9\r\n\r\n"])
    def test_what_is_not_http_is_answered_in_the_wires_shape(self, small, junk):
        with small.connect() as raw:
            raw.sendall(junk)
            reply = everything(raw)
        assert reply.startswith(b"HTTP/1.1 400 ")
        assert b'"type":"malformed"' in reply


class TestNesting:
    @pytest.mark.parametrize("path", ["/score", "/refresh_validation", "/select"])
    @pytest.mark.parametrize("depth", [50, 500, *range(880, 1000, 8), 5000])
    def test_deep_json_is_refused_and_no_fault_of_ours(self, http, path, depth):
        for value in ("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth):
            for key in ("run_id", "sketches", "problem_ids", "projection", "unheard-of"):
                reply = http.post(path, content=f'{{"{key}": {value}}}', headers=JSON)
                assert reply.status_code in (400, 422), reply.text[:300]
                assert len(reply.content) < 2000

    @pytest.mark.parametrize("path", ["/score", "/select"])
    @pytest.mark.parametrize("depth", [50, 500, 1000, 5000])
    def test_deep_msgpack_is_refused(self, http, path, depth):
        body = b"\x81\xa6run_id" + b"\x91" * depth + b"\xc0"
        reply = http.post(path, content=body + (msgpack.packb(b"") if path == "/score" else b""), headers=MSGPACK)
        assert reply.status_code in (400, 422), reply.text[:300]

    def test_a_large_value_is_not_quoted_whole(self, http):
        for value in ('"' + "x" * 900_000 + '"', "[" + "1," * 400_000 + "1]", "9" * 4000):
            reply = http.post("/select", content=f'{{"run_id": {value}}}', headers=JSON)
            refused(reply, 422, "invalid_value")
            assert len(reply.content) < 1000

    def test_an_integer_of_too_many_digits(self, http):
        refused(http.post("/select", content=f'{{"run_id": {"9" * 5000}}}', headers=JSON), 422, "invalid_value")


class TestLists:
    def test_select_declares_no_longer_list_than_it_may_hold(self, http):
        body = b"\x81\xabproblem_ids" + b"\xdd\x00\x0f\x42\x41" + b"\xc0" * 1_000_001
        reply = http.post("/select", content=body[:1_048_576], headers=MSGPACK)
        refused(reply, 400, "malformed", "not msgpack")

    def test_nested_declarations_take_no_memory(self, small, http):
        before = psutil.Process(small.process.pid).memory_info().rss
        nested = b"\xdd\x00\x0f\x00\x00" * 500
        refused(http.post("/select", content=nested + b"\xc0" * 1_040_000, headers=MSGPACK), 400, "malformed")
        assert psutil.Process(small.process.pid).memory_info().rss - before < 300 * MIB

    @pytest.mark.parametrize("headers", [JSON, MSGPACK])
    def test_select_has_the_limit_of_what_is_parsed(self, http, headers):
        reply = http.post("/select", content=b"x" * 1_048_577, headers=headers)
        refused(reply, 413, "too_large", "1048576 bytes", "GRADALIGN_MAX_JSON_BYTES")

    @pytest.mark.parametrize(
        ("path", "param"),
        [
            ("problems?cursor=" + "A" * 2049, "cursor"),
            ("problems?limit=" + "9" * 60_000, "limit"),
            ("rounds?after=" + "9" * 60_000, "after"),
            ("problems/" + "x" * 257, "problem_id"),
        ],
    )
    def test_long_parameters(self, http, path, param):
        reply = http.get(f"/runs/r/{path}")
        refused(reply, 422, "invalid_value")
        assert reply.json()["error"]["param"] == param
        assert len(reply.content) < 1000

    @pytest.mark.parametrize(
        ("method", "path"), [("GET", "/runs/{}"), ("POST", "/runs/r/snapshots/{}"), ("DELETE", "/runs/{}")]
    )
    def test_long_names(self, http, method, path):
        refused(http.request(method, path.format("x" * 129)), 422, "invalid_value", "1 to 128")


def test_json_claims_the_memory_that_its_objects_take(start_scorer):
    patient = start_scorer(BODY_SECONDS="3600", **LIMITS)  # what is sent slowly is still on its way when others come
    with patient.http() as http:
        claims(patient, http)


def claims(scorer, http):
    head = b"POST /select HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 400000\r\n\r\n"
    with scorer.connect() as slow:
        slow.sendall(head)
        deadline = time.monotonic() + 120
        while http.get("/health").json()["admitted_requests"] != 1:
            assert time.monotonic() < deadline
        # 16 times 400 kB of the 8 MiB are taken: as much again does not fit, and so many bytes of sketches do.
        refused(http.post("/select", content=b"x" * 400_000, headers=JSON), 429, "overloaded", "ADMITTED_BYTES")
        refused(http.post("/score", content=b"\xc1" * 400_000, headers=MSGPACK), 400, "malformed")
    alone = http.post("/select", content=b"x" * MIB, headers=JSON)
    deadline = time.monotonic() + 120
    while alone.status_code == 429 and time.monotonic() < deadline:
        alone = http.post("/select", content=b"x" * MIB, headers=JSON)
    refused(alone, 400, "malformed")

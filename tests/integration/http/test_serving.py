"""The process: keys, admission, sockets, a store that goes away, and an orderly end."""

import signal
import stat
import tempfile
import threading
import time
from pathlib import Path

import pytest

from gradalign import Client, Unavailable
from gradalign_scorer.store import EmbeddedServer

SECRET = "s3cret-key"
PATHS = [
    ("POST", "/score"),
    ("POST", "/v1/score"),
    ("POST", "/refresh_validation"),
    ("POST", "/select"),
    ("GET", "/runs"),
    ("GET", "/runs/r"),
    ("GET", "/runs/r/problems"),
    ("GET", "/runs/r/problems/p"),
    ("GET", "/runs/r/rounds"),
    ("POST", "/runs/r/snapshots/a"),
    ("POST", "/runs/r/snapshots/a/restore"),
    ("DELETE", "/runs/r"),
    ("GET", "/metrics"),
    ("GET", "/"),
    ("GET", "/docs"),
    ("GET", "/openapi.json"),
    ("GET", "/no-such-route"),
]


def head(path, length, kind="application/msgpack"):
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n".encode()


@pytest.fixture(scope="module")
def guarded(scorer, valkey_url, forks):
    """A scorer with two keys, which never reach its log."""
    process = type(scorer)(valkey_url, "--log-level", "debug", API_KEY=f"other, {SECRET}", forks=forks)
    yield process
    assert SECRET not in process.log.read_text()
    process.end()


class TestKeys:
    def test_every_route_but_probes_asks_for_it(self, guarded):
        with guarded.http() as http:
            for method, path in PATHS:
                for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {SECRET}"}):
                    reply = http.request(method, path, headers=headers)
                    assert reply.status_code == 401, (method, path)
                    assert reply.json()["error"]["type"] == "unauthorized"
                    assert "GRADALIGN_API_KEY" in reply.json()["error"]["message"]
                    assert reply.headers["WWW-Authenticate"] == "Bearer"
            for path in ("/livez", "/readyz", "/health"):
                assert http.get(path).status_code == 200

    @pytest.mark.parametrize("key", ["other", SECRET])
    def test_each_key_opens(self, guarded, key, run_id, problem_ids, sketches, projection):
        with Client(guarded.url, run_id=run_id, api_key=key) as client:
            client.refresh_validation(problem_ids, sketches, policy_version=0, projection=projection)
            assert client.score(problem_ids, sketches, policy_version=0, projection=projection).problem_ids

    def test_it_is_asked_before_the_body_is_read(self, guarded):
        with guarded.connect() as raw:
            raw.sendall(head("/score", 1000))
            reply = raw.recv(65536)
        assert reply.startswith(b"HTTP/1.1 401 ")
        assert b"connection: close" in reply.lower()


def test_a_full_scorer_refuses_before_the_body_is_read(start_scorer, stored):
    small = start_scorer(MAX_REQUESTS="1")
    before = stored()
    with small.connect() as slow, small.http() as http:
        slow.sendall(head("/score", 1000) + b"x" * 10)
        wait_until(lambda: http.get("/health").json()["admitted_requests"] == 1)
        with small.connect() as raw:
            raw.sendall(head("/score", 1000))
            reply = raw.recv(65536)
        assert reply.startswith(b"HTTP/1.1 429 ")
        assert b"retry-after: 1\r\n" in reply.lower()
        refused = http.post("/select", json={})
        assert (refused.status_code, refused.json()["error"]["type"]) == (429, "overloaded")
        assert "GRADALIGN_MAX_REQUESTS" in refused.json()["error"]["message"]
        assert http.get("/livez").status_code == http.get("/readyz").status_code == 200
        slow.close()
        wait_until(lambda: http.post("/select", json={}).status_code == 422)
    assert stored() == before


def test_memory_for_bodies_is_bounded(start_scorer):
    small = start_scorer(MAX_BODY_BYTES="100000", MAX_ADMITTED_BYTES="150000")
    with small.connect() as slow, small.http() as http:
        slow.sendall(head("/score", 100_000))
        wait_until(lambda: http.get("/health").json()["admitted_requests"] == 1)
        content = {"Content-Type": "application/msgpack"}
        reply = http.post("/score", content=b"x" * 60_000, headers=content)
        assert (reply.status_code, reply.json()["error"]["type"]) == (429, "overloaded")
        assert http.post("/score", content=b"\xc1" * 40_000, headers=content).status_code == 400


def test_a_sender_that_stalls_is_given_up(start_scorer):
    impatient = start_scorer(BODY_SECONDS="0.3")
    with impatient.connect() as slow:
        slow.sendall(head("/score", 1000) + b"x")
        reply = slow.recv(65536)
    assert reply.startswith(b"HTTP/1.1 400 ")


def test_a_unix_socket_is_this_users_alone(start_scorer, run_id, problem_ids, sketches, projection):
    with tempfile.TemporaryDirectory(prefix="ga-") as folder:
        path = Path(folder) / "s"
        process = start_scorer("--uds", str(path))
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with Client(f"unix:{path}", run_id=run_id) as client:
            client.refresh_validation(problem_ids, sketches, policy_version=0, projection=projection)
            assert len(client.score(problem_ids, sketches, policy_version=0, projection=projection).problem_ids) == 8
        process.end()
        assert not path.exists()


def test_a_store_that_goes_away_and_comes_back(start_scorer, run_id, problem_ids, sketches, projection):
    with tempfile.TemporaryDirectory(prefix="ga-") as folder:
        with EmbeddedServer(Path(folder)) as server:
            process = start_scorer(redis_url=server.url)
            client = Client(process.url, run_id=run_id, retries=0)
            client.refresh_validation(problem_ids, sketches, policy_version=0, projection=projection)
            first = client.score(problem_ids, sketches, policy_version=0, projection=projection)
        with process.http() as http:
            ready = http.get("/readyz")
            assert (ready.status_code, ready.json()["error"]["type"]) == (503, "unavailable")
            assert int(ready.headers["Retry-After"]) >= 1
            assert http.get("/livez").status_code == 200
            assert http.get("/health").json()["status"] == "degraded"
            with pytest.raises(Unavailable, match="the store does not answer") as error:
                client.score(problem_ids, sketches, policy_version=1, projection=projection)
            assert error.value.retry_after
            with EmbeddedServer(Path(folder)):
                wait_until(lambda: http.get("/readyz").status_code == 200)
                assert client.run().policy_version == 0
                again = client.score(problem_ids, sketches, policy_version=0, projection=projection)
                assert again.alignments == first.alignments
        client.close()


def test_two_scorers_share_a_run(scorer, start_scorer, run_id, problem_ids, sketches, projection):
    other = start_scorer()
    with Client(scorer.url, run_id=run_id) as one, Client(other.url, run_id=run_id) as two:
        one.refresh_validation(problem_ids, sketches, policy_version=0, projection=projection)
        here = one.score(problem_ids, sketches, policy_version=0, projection=projection)
        there = two.score(problem_ids, sketches, policy_version=0, projection=projection)
        assert here.alignments == there.alignments
        two.refresh_validation(problem_ids, -sketches, policy_version=1, projection=projection)
        turned = one.score(problem_ids, sketches, policy_version=1, projection=projection)
        assert turned.validation_version == 2
        assert turned.alignments == [-x for x in reversed(here.alignments)]


def test_sigterm_drains_what_was_admitted(start_scorer, run_id, problem_ids, sketches, projection):
    process = start_scorer(redis_url=None, DRAIN_SECONDS="1")
    body = b'{"run_id": "x"'
    with process.connect() as slow, process.http() as http:
        slow.sendall(head("/select", len(body) + 1, "application/json") + body)
        wait_until(lambda: http.get("/health").json()["admitted_requests"] == 1)
        process.process.send_signal(signal.SIGTERM)
        wait_until(lambda: http.get("/readyz").status_code == 503)
        assert "shutting down" in http.get("/readyz").json()["error"]["message"]
        time.sleep(1.5)
        slow.sendall(b"}")
        # Admitted before the signal, whole only long behind it: read, judged and answered.
        assert slow.recv(65536).startswith(b"HTTP/1.1 422 ")
    assert process.process.wait(timeout=120) == 0
    assert "Traceback" not in process.log.read_text()


def test_the_embedded_store_ends_with_its_scorer_and_keeps_its_data(start_scorer, problem_ids, sketches, projection):
    with tempfile.TemporaryDirectory(prefix="ga-") as folder:
        for start in range(2):
            process = start_scorer("--data-dir", folder, redis_url=None)
            with Client(process.url, run_id="kept") as client:
                if start == 0:
                    client.refresh_validation(problem_ids, sketches, policy_version=4, projection=projection)
                assert client.run().policy_version == 4
            assert process.end() == 0


def test_scores_from_many_threads_at_once(scorer, run_id, problem_ids, sketches, projection):
    with Client(scorer.url, run_id=run_id) as client:
        client.refresh_validation(problem_ids, sketches, policy_version=0, projection=projection)
        rankings = []

        def work():
            rankings.extend(
                client.score(problem_ids, sketches, policy_version=0, projection=projection) for _ in range(10)
            )

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(rankings) == 60
        assert len({tuple(ranking.alignments) for ranking in rankings}) == 1
        assert client.problem("p0").times_scored == 60


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--host", "0.0.0.0"], ["GRADALIGN_HOST (--host)", "GRADALIGN_API_KEY", "--insecure"]),
        (["--device", "warp"], ["GRADALIGN_DEVICE (--device)", "'warp'", "cuda:N"]),
        (["--host", "203.0.113.7", "--insecure"], ["203.0.113.7", "--host"]),
        (["--uds", "/no/such/folder/s"], ["GRADALIGN_UDS (--uds)"]),
        (["--data-dir", "/proc/nope"], ["GRADALIGN_DATA_DIR (--data-dir)"]),
        (["--port", "taken"], ["127.0.0.1:", "GRADALIGN_PORT (--port"]),
    ],
)
def test_a_wrong_setting_stops_the_start(scorer, serve, valkey_url, flags, words):
    flags = [str(scorer.address[1]) if flag == "taken" else flag for flag in flags]
    store = [] if "--data-dir" in flags else ["--redis-url", valkey_url]
    done = serve("--port", "0", *store, *flags)
    assert done.returncode == 2
    for word in words:
        assert word in done.stderr
    assert "Traceback" not in done.stderr


def wait_until(condition, seconds=120.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)

"""API keys over the wire: who may do what, and how keys change while the scorer runs."""

import re
import signal
import time

import httpx
import pytest

from gradalign import Client, Forbidden, RefreshRequest, ScoreRequest, SketchMatrix, Unauthorized
from gradalign.wire.codec import MSGPACK, encode_request

ADMIN, TEAM, READER = "admin-0123456789abcdef", "team-0123456789abcdef", "reader-0123456789abcdef"
KEYS = f"# who may do what\n{ADMIN}\n{TEAM} runs=teamA-*\n{READER} runs=teamA-*,other-1 read-only\n"


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def guarded(scorer, valkey_url, forks, tmp_path_factory):
    """A scorer with a key file; no key ever reaches its log."""
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.touch(mode=0o600)
    path.write_text(KEYS)
    flags = ["--api-key-file", str(path), "--log-level", "debug"]
    process = type(scorer)(valkey_url, *flags, LOG_FORMAT="json", forks=forks)
    yield process
    log = process.log.read_text()
    assert not [key for key in (ADMIN, TEAM, READER) if key in log]
    process.end()


@pytest.fixture(scope="module")
def http(guarded):
    with guarded.http() as client:
        yield client


def bodies(run, problem_ids, sketches, projection):
    """A good body for each route that takes one, by path."""
    common = {"run_id": run, "policy_version": 0, "projection": projection, "problem_ids": problem_ids}
    rows = {**common, "sketches": SketchMatrix.of(sketches)}
    packed = {"/score": ScoreRequest(**rows), "/refresh_validation": RefreshRequest(**rows)}
    sent = {
        path: {"content": b"".join(encode_request(m)), "headers": {"Content-Type": MSGPACK}}
        for path, m in packed.items()
    }
    return {**sent, "/select": {"json": {"run_id": run, "policy_version": 0, "count": 1}}}


def routes(http):
    """Every route of the scorer, in both spellings."""
    found = http.get("/openapi.json", headers=bearer(ADMIN)).json()["paths"]
    for path, methods in found.items():
        for method in methods:
            yield method.upper(), path
            if not path.startswith(("/livez", "/readyz", "/health", "/metrics")):
                yield method.upper(), f"/v1{path}"


def ask(http, method, path, key, run, sent):
    content = dict(sent.get(path.removeprefix("/v1"), {}))
    headers = {**content.pop("headers", {}), **bearer(key)}
    place = re.sub(r"\{(name|problem_id)\}", "p0", path.replace("{run}", run))
    return http.request(method, place, headers=headers, **content)


class TestScopes:
    def test_no_route_answers_about_a_run_out_of_scope(self, http, stored, problem_ids, sketches, projection):
        sent = bodies("teamB-1", problem_ids, sketches, projection)
        before = stored()
        seen = set()
        for method, path in routes(http):
            if "{run}" not in path and method == "GET":
                assert path.removeprefix("/v1") in {"/runs", "/livez", "/readyz", "/health", "/metrics"}, "test it too"
                continue
            reply = ask(http, method, path, TEAM, "teamB-1", sent)
            assert (reply.status_code, reply.json()["error"]["type"]) == (403, "forbidden"), (method, path)
            assert reply.json()["error"]["param"] == "run_id"
            assert "'teamB-1'" in reply.json()["error"]["message"]
            assert "teamA-*" in reply.json()["error"]["message"]
            seen.add(path)
        assert len(seen) >= 18
        assert stored() == before

    def test_no_route_writes_for_a_read_only_key(self, http, stored, problem_ids, sketches, projection):
        sent = bodies("teamA-1", problem_ids, sketches, projection)
        before = stored()
        for method, path in routes(http):
            if method == "GET":
                continue
            reply = ask(http, method, path, READER, "teamA-1", sent)
            assert (reply.status_code, reply.json()["error"]["type"]) == (403, "forbidden"), (method, path)
            assert f"is a {method} and its API key is read-only" in reply.json()["error"]["message"]
        assert stored() == before

    def test_a_read_only_key_is_refused_before_the_body_is_read(self, guarded):
        with guarded.connect() as raw:
            raw.sendall(
                b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/msgpack\r\nContent-Length: 1000\r\n"
                b"Authorization: Bearer " + READER.encode() + b"\r\n\r\n"
            )
            reply = raw.recv(65536)
        assert reply.startswith(b"HTTP/1.1 403 ")
        assert b"connection: close" in reply.lower()

    def test_a_team_works_within_its_scope_and_sees_no_other_run(self, guarded, problem_ids, sketches, projection):
        def work(run, key):
            with Client(guarded.url, run_id=run, api_key=key, retries=0) as client:
                client.refresh_validation(problem_ids, sketches, policy_version=0, projection=projection)
                assert client.score(problem_ids, sketches, policy_version=0, projection=projection).problem_ids
                client.snapshot("s")
                assert client.problems().problems

        work("teamA-x", TEAM)
        work("teamB-x", ADMIN)
        work("other-1", ADMIN)
        seen = {}
        for key in (ADMIN, TEAM, READER):
            with Client(guarded.url, run_id="teamA-x", api_key=key) as client:
                seen[key] = {state.run_id for state in client.runs()}
                assert client.run().problems == 8
        assert {"teamA-x", "teamB-x", "other-1"} <= seen[ADMIN]
        assert {run for run in seen[TEAM] if not run.startswith("teamA-")} == set()
        assert "other-1" in seen[READER]
        assert "teamB-x" not in seen[READER]
        for run in ("teamA-x", "teamB-x", "other-1"):
            with Client(guarded.url, run_id=run, api_key=ADMIN) as client:
                client.delete_run()

    def test_the_client_raises_forbidden(self, guarded, problem_ids, sketches, projection):
        with Client(guarded.url, run_id="teamB-1", api_key=TEAM) as client:
            with pytest.raises(Forbidden, match="teamA-") as caught:
                client.refresh_validation(
                    problem_ids, sketches, policy_version=0, projection=projection, request_id="mine"
                )
            assert caught.value.request_id == "mine"
            with pytest.raises(Forbidden):
                client.run()


class TestBrowsers:
    def test_a_page_asks_for_the_key_by_a_prompt(self, http):
        for path in ("/", "/docs", "/openapi.json", "/metrics", "/runs"):
            reply = http.get(path, headers={"Accept": "text/html,*/*"})
            assert reply.status_code == 401
            assert reply.headers["WWW-Authenticate"].startswith('Basic realm="GradAlign')
            assert http.get(path).headers["WWW-Authenticate"] == "Bearer"
            assert http.get(path, auth=("anyone", READER)).status_code == 200
            assert http.get(path, auth=("", READER)).status_code == 200
            assert http.get(path, auth=(READER, "")).status_code == 401

    def test_remembered_credentials_cannot_write(self, http, stored):
        before = stored()
        for method, path in (("POST", "/runs/teamA-1/snapshots/a/restore"), ("POST", "/select"), ("DELETE", "/runs/r")):
            reply = http.request(method, path, auth=("", ADMIN))
            assert reply.status_code == 401
            assert "for reading only" in reply.json()["error"]["message"]
        assert stored() == before

    @pytest.mark.parametrize(
        "header",
        ["Basic", "Basic !!!", "Basic OnRlYW0=", "Bearer", ADMIN, f"Token {ADMIN}", "Bearer " + "x" * 9000],
    )
    def test_what_is_no_key_opens_nothing(self, http, header):
        reply = http.get("/runs", headers={"Authorization": header})
        assert reply.status_code == 401
        assert ADMIN not in reply.text
        assert "xxxx" not in reply.text


def rewrite(path, text, mode=0o600):
    fresh = path.with_name("fresh")
    fresh.touch(mode=0o600)
    fresh.write_text(text)
    fresh.chmod(mode)
    fresh.replace(path)


class TestRotation:
    @pytest.fixture
    def rotating(self, start_scorer, tmp_path):
        rewrite(tmp_path / "keys", "first-key\n")
        return start_scorer(API_KEY_FILE=str(tmp_path / "keys"), API_KEY="fixed-key"), tmp_path / "keys"

    def accepted(self, process):
        with process.http() as http:
            keys = ("first-key", "second-key", "fixed-key")
            return {key for key in keys if http.get("/runs", headers=bearer(key)).status_code == 200}

    def settles(self, process, expected):
        deadline = time.monotonic() + 120
        while self.accepted(process) != expected:
            assert time.monotonic() < deadline, self.accepted(process)
            time.sleep(0.1)

    def test_keys_change_without_a_restart(self, rotating):
        process, path = rotating
        assert self.accepted(process) == {"first-key", "fixed-key"}
        rewrite(path, "first-key\nsecond-key\n")
        self.settles(process, {"first-key", "second-key", "fixed-key"})
        rewrite(path, "second-key\n")
        self.settles(process, {"second-key", "fixed-key"})

    @pytest.mark.parametrize(
        ("text", "mode", "words"),
        [
            ("second-key runs=\n", 0o600, "line 1 has the run pattern"),
            ("", 0o600, "holds 0 keys"),
            ("second-key\n", 0o644, "chmod 600"),
            ("fixed-key\n", 0o600, "repeats a key of GRADALIGN_API_KEY"),
        ],
    )
    def test_a_broken_file_leaves_the_last_good_keys(self, rotating, text, mode, words):
        process, path = rotating
        rewrite(path, text, mode)
        deadline = time.monotonic() + 120
        while "the keys stay as they were" not in process.log.read_text():
            assert time.monotonic() < deadline
            assert self.accepted(process) == {"first-key", "fixed-key"}
            time.sleep(0.1)
        assert words in process.log.read_text()
        assert self.accepted(process) == {"first-key", "fixed-key"}
        rewrite(path, "second-key\n")
        self.settles(process, {"second-key", "fixed-key"})
        assert "second-key" not in process.log.read_text()

    def test_sighup_reads_it_at_once(self, rotating):
        process, path = rotating
        rewrite(path, "second-key\n")
        process.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 120
        # Nothing is asked meanwhile: without the signal the file would be looked at with the next request.
        while "read 2 API keys" not in process.log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert self.accepted(process) == {"second-key", "fixed-key"}


def test_a_client_without_a_key_is_told_what_to_send(guarded):
    with Client(guarded.url, run_id="r", api_key="", retries=0) as client:
        with pytest.raises(Unauthorized, match="Authorization: Bearer KEY"):
            client.run()
        assert client.health()["status"] == "ok"
    assert httpx.get(f"{guarded.url}/livez").status_code == 200

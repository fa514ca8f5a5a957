"""The log: one JSON object a line and one line a request, with its id, and without what it carried."""

import json
import re
import time

import numpy as np
import pytest

from gradalign import Client, RefreshRequest, SketchMatrix
from gradalign.wire.codec import encode_request

KEY = "k3y-that-nobody-sees"
MARK = 0.12345679104328156  # a float32 that would be seen in a log


@pytest.fixture(scope="module")
def logging_scorer(scorer, valkey_url, forks):
    process = type(scorer)(valkey_url, "--log-level", "debug", LOG_FORMAT="json", API_KEY=KEY, forks=forks)
    yield process
    process.end()


def lines(process):
    """Every line of the log; each must be an object."""
    return [json.loads(line) for line in process.log.read_text().splitlines()]


def line_of(process, request_id):
    """The line of a request; it is written once the reply is sent."""
    deadline = time.monotonic() + 120
    while True:
        found = [line for line in lines(process) if line.get("request_id") == request_id]
        if found:
            assert len(found) == 1
            return found[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def client(logging_scorer, run_id):
    with Client(logging_scorer.url, run_id=run_id, api_key=KEY, retries=0) as client:
        yield client


def test_a_score_is_one_line_with_its_run_rows_and_times(logging_scorer, client, problem_ids, projection):
    sketches = np.full((8, 32), MARK, dtype=np.float32)
    for number in range(2):
        send = client.refresh_validation if number == 0 else client.score
        send(problem_ids, sketches, policy_version=0, projection=projection, request_id=f"{client.run_id}-{number}")
    line = line_of(logging_scorer, f"{client.run_id}-1")
    assert (line["method"], line["route"], line["status"], line["error"]) == ("POST", "/score", 200, None)
    assert (line["run"], line["rows"], line["level"]) == (client.run_id, 8, "info")
    assert set(line["stages"]) == {"receive", "decode", "load", "compute", "commit", "total"}
    assert 0 < line["stages"]["compute"] < line["seconds"] < 10
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line["time"])
    assert line_of(logging_scorer, f"{client.run_id}-0")["route"] == "/refresh_validation"


def test_no_line_holds_a_key_a_sketch_or_a_problem(logging_scorer, client, run_id, projection):
    ids = [f"private-{i}" for i in range(8)]
    body = {
        "run_id": run_id,
        "policy_version": 0,
        "projection": projection.to_map(),
        "problem_ids": ids,
        "sketches": np.full((8, 32), MARK).tolist(),
        "request_id": f"{run_id}-json",
    }
    headers = {"Authorization": f"Bearer {KEY}"}
    with logging_scorer.http() as http:
        assert http.post("/refresh_validation", json=body, headers=headers).status_code == 200
        http.post("/score", json={**body, "unheard-of": MARK}, headers=headers)
        http.get("/runs", headers={"Authorization": "Bearer wr0ng-key"})
        http.get("/runs", auth=("", KEY))
        http.get(f"/runs/{run_id}/problems/private-0", headers=headers)
    line_of(logging_scorer, f"{run_id}-json")
    log = logging_scorer.log.read_text()
    for word in (KEY, "wr0ng-key", str(MARK)[:8], "private-", "OmszeS10aGF0"):
        assert word not in log


def test_a_refusal_says_its_type(logging_scorer, client, run_id, projection, problem_ids):
    zero = SketchMatrix.of(np.zeros((8, 32), dtype=np.float16))
    request = RefreshRequest(
        run_id=run_id,
        policy_version=1,
        projection=projection,
        problem_ids=problem_ids,
        sketches=zero,
        request_id=run_id,
    )
    headers = {"Content-Type": "application/msgpack", "Authorization": f"Bearer {KEY}"}
    with logging_scorer.http() as http:
        reply = http.post("/refresh_validation", content=b"".join(encode_request(request)), headers=headers)
        assert reply.status_code == 422
        assert reply.headers["X-Request-Id"] == run_id
    line = line_of(logging_scorer, run_id)
    assert (line["status"], line["error"], line["run"]) == (422, "invalid_value", run_id)


@pytest.mark.parametrize(("given", "kept"), [("trace-1.a_b", True), ("a b", False), ("x" * 129, False), ("", False)])
def test_every_reply_names_its_request(logging_scorer, given, kept):
    with logging_scorer.http() as http:
        for path, status in (("/livez", 200), ("/runs", 401), ("/no-such", 401)):
            reply = http.get(path, headers={"X-Request-Id": given})
            assert reply.status_code == status
            named = reply.headers["X-Request-Id"]
            assert (named == given) is kept
            assert re.fullmatch(r"[A-Za-z0-9._-]{1,128}", named)
            if not kept:
                assert line_of(logging_scorer, named)["status"] == status


def test_a_path_cannot_write_lines_of_its_own(logging_scorer):
    with logging_scorer.http(headers={"Authorization": f"Bearer {KEY}"}) as http:
        for path in ("/runs/a%0Aforged", "/no%0D%0Aforged", "/runs/a/problems/%0Aforged%1B[2J"):
            reply = http.get(path)
            line = line_of(logging_scorer, reply.headers["X-Request-Id"])
            assert line["run"] in (None, "a")
    assert "forged" not in logging_scorer.log.read_text()


def test_probes_are_quiet_and_plain_is_the_default(start_scorer, run_id):
    process = start_scorer()
    with process.http() as http:
        for path in ("/livez", "/readyz", "/health", "/metrics", "/runs"):
            assert http.get(path, headers={"X-Request-Id": "mine"}).status_code == 200
        http.get("/runs/never-seen")
    deadline = time.monotonic() + 120
    while "never-seen" not in process.log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    log = process.log.read_text()
    assert not log.startswith("{")
    requests = [line for line in log.splitlines() if "requestlog" in line]
    assert len(requests) == 2, requests
    assert "request_id=mine method=GET route=/runs status=200" in requests[0]
    assert "status=404 run=never-seen" in requests[1]
    assert "error=not_found" in requests[1]


def test_a_store_that_is_away_is_a_warning(start_scorer):
    process = start_scorer(redis_url="redis://127.0.0.1:1", LOG_FORMAT="json", LOG_LEVEL="warning")
    with process.http() as http:
        reply = http.get("/runs")
        assert reply.status_code == 503
    line = line_of(process, reply.headers["X-Request-Id"])
    assert (line["level"], line["error"], line["route"]) == ("warning", "unavailable", "/runs")

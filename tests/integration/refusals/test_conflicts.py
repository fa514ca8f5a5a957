"""What is not there, and what disagrees with what a run holds."""

import asyncio

import numpy as np
import pytest
from badrequests import MSGPACK, check, header, packed

from gradalign import AsyncClient, Client
from gradalign.wire.projection import Projection


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

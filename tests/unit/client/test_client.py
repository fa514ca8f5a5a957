"""Both clients over httpx's transport seam: what they send, what they read, and when they try again."""

import asyncio
import json

import httpx
import msgpack
import numpy as np
import pytest

from gradalign import (
    AsyncClient,
    Client,
    Fenced,
    InvalidValue,
    Overloaded,
    Projection,
    RequestError,
    Unavailable,
    Unreachable,
)
from gradalign.wire.codec import MSGPACK, split_body

PROJECTION = Projection(dim=4, seed=0, parameters="ab" * 32)
RANKING = {
    "run_id": "r", "policy_version": 1, "validation_version": 1, "validation_policy_version": 1, "strategy": "cosine",
    "problem_ids": ["b", "a"], "priorities": [0.5, 0.1], "alignments": [0.5, 0.1], "weights": [1.0, 0.25],
    "norms": [1.0, 1.0], "no_signal": [], "selected": ["b"],
    "rejected": [{"problem_id": "c", "reason": "NaN"}], "reliability": None, "request_id": "x", "a_newer_key": 1,
}  # fmt: skip


class Scorer:
    """A transport that plays back replies and keeps the requests."""

    def __init__(self, *replies):
        self.replies = list(replies)
        self.requests = []

    def __call__(self, request):
        self.requests.append(request)
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return httpx.Response(reply.status_code, content=reply.content, headers=reply.headers)


def ok(body=RANKING):
    return httpx.Response(200, content=msgpack.packb(body), headers={"Content-Type": MSGPACK})


def failed(status, kind, **headers):
    body = {"error": {"type": kind, "message": "why", "param": "p", "request_id": "q"}}
    return httpx.Response(status, json=body, headers=headers)


def score(scorer, *, asynchronous, url="http://scorer", **settings):
    rows, ids = np.ones((2, 4), dtype=np.float16), ["a", "b"]

    async def run_async():
        async with AsyncClient(url, run_id="r", transport=httpx.MockTransport(scorer), **settings) as client:
            return await client.score(ids, rows, policy_version=1, projection=PROJECTION, select=1)

    if asynchronous:
        return asyncio.run(run_async())
    with Client(url, run_id="r", transport=httpx.MockTransport(scorer), **settings) as client:
        return client.score(ids, rows, policy_version=1, projection=PROJECTION, select=1)


@pytest.fixture(params=[False, True], ids=["blocking", "async"])
def asynchronous(request):
    return request.param


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    async def instant(_):
        return None

    monkeypatch.setattr("gradalign.client.client.time.sleep", lambda _: None)
    monkeypatch.setattr("gradalign.client.client.asyncio.sleep", instant)


def test_score_sends_the_wire_and_reads_the_ranking(asynchronous):
    scorer = Scorer(ok())
    ranking = score(scorer, asynchronous=asynchronous, api_key="secret", epoch=7)
    sent = scorer.requests[0]
    header, data = split_body(memoryview(sent.content))
    assert sent.url.path == "/v1/score"
    assert sent.headers["Authorization"] == "Bearer secret"
    assert sent.headers["Content-Length"] == str(len(sent.content))
    assert "Transfer-Encoding" not in sent.headers
    assert (header["epoch"], header["select"], header["dtype"], len(data)) == (7, 1, "float16", 16)
    assert ranking.selected == ["b"]
    assert ranking.rejected[0].reason == "NaN"
    assert ranking.weight_of() == {"b": 1.0, "a": 0.25}


@pytest.mark.parametrize(
    "failure",
    [
        httpx.ConnectError("refused"),
        httpx.ReadError("reset"),
        httpx.ReadTimeout("slow"),
        failed(503, "unavailable", **{"Retry-After": "1"}),
        failed(429, "overloaded"),
        httpx.Response(502, text="<html>bad gateway</html>"),
    ],
)
def test_a_retry_sends_the_same_request_id_and_bytes(asynchronous, failure):
    scorer = Scorer(failure, failure, ok())
    score(scorer, asynchronous=asynchronous)
    first, second, third = (request.content for request in scorer.requests)
    assert first == second == third
    assert split_body(memoryview(first))[0]["request_id"]


def test_retries_end(asynchronous):
    scorer = Scorer(*[httpx.ConnectError("refused")] * 3)
    with pytest.raises(Unreachable, match="gradalign serve"):
        score(scorer, asynchronous=asynchronous, retries=2)
    assert len(scorer.requests) == 3


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (failed(409, "fenced"), Fenced),
        (failed(422, "invalid_value"), InvalidValue),
        (failed(418, "a_type_of_tomorrow"), RequestError),
        (httpx.Response(404, text="nginx"), RequestError),
    ],
)
def test_refusals_are_raised_at_once_as_their_class(asynchronous, reply, error):
    scorer = Scorer(reply)
    with pytest.raises(error):
        score(scorer, asynchronous=asynchronous)
    assert len(scorer.requests) == 1


@pytest.mark.parametrize(
    ("reply", "error"),
    [(failed(429, "overloaded", **{"Retry-After": "3"}), Overloaded), (failed(503, "unavailable"), Unavailable)],
)
def test_unavailable_errors_carry_their_fields(asynchronous, reply, error):
    with pytest.raises(error) as caught:
        score(Scorer(reply), asynchronous=asynchronous, retries=0)
    assert caught.value.param == "p"
    assert caught.value.request_id == "q"
    assert caught.value.retry_after == (3.0 if error is Overloaded else None)


def test_an_invalid_request_never_leaves():
    scorer = Scorer()
    with (
        Client("http://s", run_id="r", transport=httpx.MockTransport(scorer)) as client,
        pytest.raises(InvalidValue, match="distinct"),
    ):
        client.score(["a", "a"], np.ones((2, 4)), policy_version=1, projection=PROJECTION)
    assert scorer.requests == []


ROWS = {"problem_ids": ["a", "b"], "sketches": np.ones((2, 4)), "projection": PROJECTION}


@pytest.mark.parametrize(("call", "columns"), [("score", ROWS), ("refresh_validation", ROWS), ("select", {"count": 1})])
def test_an_empty_request_id_is_refused_and_not_replaced(call, columns):
    """A retry under an id of the client's own would be applied again."""
    scorer = Scorer()
    with (
        Client("http://s", run_id="r", transport=httpx.MockTransport(scorer)) as client,
        pytest.raises(InvalidValue, match="request_id is '';"),
    ):
        getattr(client, call)(**columns, policy_version=1, request_id="")
    assert scorer.requests == []


def test_paths_quote_problem_ids():
    scorer = Scorer(ok({"problem_id": "a/b c?", "priority": 0.0, "alignment": None, "policy_version": 1,
                        "times_scored": 1, "times_selected": 0, "pass_rate": None}))  # fmt: skip
    with Client("http://s", run_id="r", transport=httpx.MockTransport(scorer)) as client:
        client.problem("a/b c?")
    assert scorer.requests[0].url.raw_path == b"/v1/runs/r/problems/a%2Fb%20c%3F"


@pytest.mark.parametrize(
    ("name", "path"), [(".", b"%2E"), ("..", b"%2E%2E"), ("...", b"..."), ("a..b", b"a..b"), ("-", b"-")]
)
def test_names_of_dots_are_no_steps_to_another_resource(name, path):
    run = {"run_id": "r", "policy_version": 0, "problems": 0}
    scorer = Scorer(*[ok(run)] * 5)
    with Client("http://s/behind", run_id=name, transport=httpx.MockTransport(scorer)) as client:
        client.snapshot(name)
        client.restore(name)
        client.delete_run()
    runs = b"/behind/v1/runs/" + path
    snapshot = runs + b"/snapshots/" + path
    assert [r.url.raw_path for r in scorer.requests] == [snapshot, snapshot + b"/restore", runs]


@pytest.mark.parametrize("problem_id", ["", "x" * 257, "\ud800", 5, None])
def test_what_is_no_problem_id_never_leaves(problem_id):
    scorer = Scorer()
    with (
        Client("http://s", run_id="r", transport=httpx.MockTransport(scorer)) as client,
        pytest.raises(InvalidValue) as caught,
    ):
        client.problem(problem_id)
    assert caught.value.param == "problem_id"
    assert scorer.requests == []


def test_select_sends_json():
    selection = {"run_id": "r", "policy_version": 2, "selected": ["a"], "priorities": [None], "explored": ["a"]}
    scorer = Scorer(ok(selection))
    with Client("http://s", run_id="r", transport=httpx.MockTransport(scorer)) as client:
        assert client.select(1, policy_version=2, problem_ids=["a"]).explored == ["a"]
    assert json.loads(scorer.requests[0].content)["problem_ids"] == ["a"]


@pytest.mark.parametrize(
    "url",
    ["scorer:8000", "http://::1:8000", "http://fe80::1", "http://[::1", "http://[127.0.0.1]:80", "http://", "http://:8000",
     "http://scorer:port", "http://scorer:70000", "https://::1"],
)  # fmt: skip
def test_a_wrong_url_is_refused_with_the_forms_that_work(url):
    with pytest.raises(InvalidValue, match="unix:/path") as caught:
        Client(url, run_id="r")
    assert repr(url) in str(caught.value)
    assert "http://[::1]:8000" in str(caught.value)


def test_the_key_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("GRADALIGN_API_KEY", "from-env")
    scorer = Scorer(ok({"status": "ok"}))
    with Client("http://s", run_id="r", transport=httpx.MockTransport(scorer)) as client:
        client.health()
    assert scorer.requests[0].headers["Authorization"] == "Bearer from-env"


class TestSeveralScorers:
    """A list of URLs, of replicas over one store."""

    URLS = ("http://a", "http://b", "http://c")

    @staticmethod
    def hosts(scorer):
        return [request.url.host for request in scorer.requests]

    @pytest.mark.parametrize(
        "failure",
        [
            httpx.ConnectError("refused"),
            httpx.ReadError("reset"),
            failed(503, "unavailable", **{"Retry-After": "1"}),
            failed(429, "overloaded"),
        ],
    )
    def test_the_next_one_gets_the_same_request(self, asynchronous, failure):
        scorer = Scorer(failure, failure, ok())
        score(scorer, asynchronous=asynchronous, url=self.URLS, retries=0)
        assert self.hosts(scorer) == ["a", "b", "c"]
        assert len({request.content for request in scorer.requests}) == 1

    def test_all_are_tried_before_a_wait_and_again_behind_it(self, asynchronous, monkeypatch):
        waits, gone = [], httpx.ConnectError("refused")

        async def wait(seconds):
            waits.append(seconds)

        monkeypatch.setattr("gradalign.client.client.time.sleep", waits.append)
        monkeypatch.setattr("gradalign.client.client.asyncio.sleep", wait)
        scorer = Scorer(*[gone] * 6)
        with pytest.raises(Unreachable):
            score(scorer, asynchronous=asynchronous, url=self.URLS, retries=1)
        assert self.hosts(scorer) == ["a", "b", "c"] * 2
        assert [wait > 0 for wait in waits] == [False, False, True, False, False]

    def test_a_refusal_is_not_asked_of_the_others(self, asynchronous):
        scorer = Scorer(failed(409, "fenced"))
        with pytest.raises(Fenced):
            score(scorer, asynchronous=asynchronous, url=self.URLS)
        assert self.hosts(scorer) == ["a"]

    def test_later_requests_stay_with_the_one_that_answered(self):
        scorer = Scorer(httpx.ConnectError("refused"), ok({"status": "ok"}), ok({"status": "ok"}))
        with Client(self.URLS, run_id="r", transport=httpx.MockTransport(scorer)) as client:
            assert client.base_url == "http://a"
            client.health()
            client.health()
            assert client.base_url == "http://b"
        assert self.hosts(scorer) == ["a", "b", "b"]

    @pytest.mark.parametrize("urls", [[], ["http://a", "http://a"], ["http://a", "b:8000"]])
    def test_a_list_that_cannot_be_used_is_refused(self, urls):
        with pytest.raises(InvalidValue, match="expected"):
            Client(urls, run_id="r")

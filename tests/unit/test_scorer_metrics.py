"""What `/metrics` counts: answers by the template of their route, errors included, and the parts of a score."""

import asyncio

import pytest

from gradalign_scorer.metrics import Metrics, RequestCounter


class Route:
    path = "/runs/{run}"


@pytest.fixture
def metrics():
    return Metrics()


def serve(metrics, app, **scope):
    async def go():
        async def send(message):
            pass

        await RequestCounter(app, metrics)({"type": "http", "method": "GET", **scope}, None, send)

    asyncio.run(go())


def answering(status, route=Route):
    async def app(scope, receive, send):
        # The router notes the route in the scope it was given.
        scope["route"] = route
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    return app


def count(metrics, route, method, status):
    labels = {"route": route, "method": method, "status": str(status)}
    return metrics.registry.get_sample_value("gradalign_requests_total", labels) or 0


def test_answers_are_counted_by_route_method_and_status(metrics):
    for status in (200, 200, 404):
        serve(metrics, answering(status), path="/runs/a")
    serve(metrics, answering(200), path="/runs/b", method="DELETE")
    assert count(metrics, "/runs/{run}", "GET", 200) == 2
    assert count(metrics, "/runs/{run}", "GET", 404) == 1
    assert count(metrics, "/runs/{run}", "DELETE", 200) == 1
    timed = metrics.registry.get_sample_value("gradalign_request_duration_seconds_count", {"route": "/runs/{run}"})
    assert timed == 4


def test_paths_that_no_route_knows_share_a_label(metrics):
    for i in range(50):
        serve(metrics, answering(404, route=None), path=f"/scan/{i}")
    assert count(metrics, "none", "GET", 404) == 50
    assert metrics.exposition().count(b"gradalign_requests_total{") == 1


def test_an_app_that_fails_counts_as_500(metrics):
    async def app(scope, receive, send):
        raise RuntimeError("no answer")

    with pytest.raises(RuntimeError):
        serve(metrics, app, path="/")
    assert count(metrics, "none", "GET", 500) == 1


def test_what_is_no_request_is_passed_on(metrics):
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["type"])

    serve(metrics, app, type="lifespan")
    assert seen == ["lifespan"]
    assert b"gradalign_requests_total{" not in metrics.exposition()


def test_parts_of_a_score_are_timed_also_where_they_fail(metrics):
    def fail():
        with metrics.stage("compute"):
            raise ValueError("in the middle")

    with metrics.stage("compute"):
        pass
    with pytest.raises(ValueError, match="in the middle"):
        fail()
    assert metrics.registry.get_sample_value("gradalign_score_duration_seconds_count", {"stage": "compute"}) == 2


def test_two_scorers_in_a_process_count_apart(metrics):
    other = Metrics()
    metrics.problems.inc(5)
    assert other.registry.get_sample_value("gradalign_scored_problems_total") == 0
    assert metrics.registry.get_sample_value("gradalign_scored_problems_total") == 5


def test_everything_is_in_the_text(metrics):
    text = metrics.exposition().decode()
    for name in (
        "requests_total",
        "rejected_total",
        "received_bytes_total",
        "scored_problems_total",
        "rejected_rows_total",
        "repeated_requests_total",
        "request_duration_seconds",
        "score_duration_seconds",
        "queue_depth",
        "admitted_requests",
        "admitted_bytes",
    ):
        assert f"# HELP gradalign_{name}" in text

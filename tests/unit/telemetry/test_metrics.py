"""What `/metrics` counts: answers by the template of their route, errors included, and the parts of a score."""

import asyncio
import time

import pytest
from prometheus_client import generate_latest

from gradalign import RoundRecord
from gradalign_scorer.http.bodies import Body
from gradalign_scorer.telemetry.metrics import Metrics, RequestCounter


class Route:
    path = "/runs/{run}"


@pytest.fixture
def metrics():
    return Metrics()


def text_of(metrics):
    return generate_latest(metrics.registry).decode()


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
    assert text_of(metrics).count("gradalign_requests_total{") == 1


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
    assert "gradalign_requests_total{" not in text_of(metrics)


def test_parts_of_a_score_are_timed_also_where_they_fail(metrics):
    def fail():
        with metrics.stage("compute"):
            raise ValueError("in the middle")

    with metrics.stage("compute"):
        pass
    with pytest.raises(ValueError, match="in the middle"):
        fail()
    assert metrics.registry.get_sample_value("gradalign_score_duration_seconds_count", {"stage": "compute"}) == 2


def seconds(metrics, stage):
    return metrics.registry.get_sample_value("gradalign_score_duration_seconds_sum", {"stage": stage})


def test_waiting_for_a_slow_sender_is_no_part_of_what_waits_for_it(metrics):
    async def receive(body):
        async def later():
            await asyncio.sleep(0.2)
            body.take(8)

        task = asyncio.create_task(later())
        with metrics.receiving(body), metrics.stage("compute", body):
            await body.whole()
            sum(range(2_000_000))  # work, some tens of milliseconds
        await task

    began = time.perf_counter()
    asyncio.run(receive(Body("application/msgpack", memoryview(bytearray(8)), arrived=0)))
    whole = time.perf_counter() - began
    assert seconds(metrics, "receive") >= 0.2
    assert 0.005 < seconds(metrics, "compute") <= whole - 0.2


def test_committed_rounds_are_counted(metrics):
    def record(kind, **summary):
        return RoundRecord(
            round=0,
            kind=kind,
            at=0.0,
            policy_version=0,
            validation_version=None,
            problems=7,
            selected=2,
            summary=summary,
        )

    metrics.count_round(record("score", no_signal=3, rejected=1))
    metrics.count_round(record("refresh", no_signal=4, rejected=2))
    metrics.count_round(record("select", explored=1))
    values = {
        name: metrics.registry.get_sample_value(f"gradalign_{name}_total")
        for name in ("scored_problems", "zero_signal_problems", "selected_problems", "rejected_rows")
    }
    assert values == {"scored_problems": 7, "zero_signal_problems": 3, "selected_problems": 6, "rejected_rows": 3}
    kinds = [
        metrics.registry.get_sample_value("gradalign_rounds_total", {"kind": k}) for k in ("score", "refresh", "select")
    ]
    assert kinds == [1, 1, 1]


def test_two_scorers_in_a_process_count_apart(metrics):
    other = Metrics()
    metrics.scored.inc(5)
    assert other.registry.get_sample_value("gradalign_scored_problems_total") == 0
    assert metrics.registry.get_sample_value("gradalign_scored_problems_total") == 5

"""Tracing: a span a request, of what may be told and nothing else; a collector that is away is nobody's trouble."""

import json
import re
import secrets
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from collector import attributes
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from rawhttp import head, wait_until

from gradalign import Client
from gradalign_scorer.settings import SettingsError
from gradalign_scorer.telemetry.tracing import Tracing

KEY = "k3y-that-nobody-sees"
MARK = 0.12345679104328156  # a float32 that would be seen in a span


@pytest.fixture(scope="module")
def traced(scorer, valkey_url, forks, collector):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        patch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
        process = type(scorer)(valkey_url, "--tracing", LOG_FORMAT="json", API_KEY=KEY, forks=forks)
    yield process
    process.end()


@pytest.fixture
def trace_id():
    return secrets.token_hex(16)


@pytest.fixture
def http(traced, trace_id):
    headers = {"Authorization": f"Bearer {KEY}", "traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"}
    with traced.http(headers=headers) as http:
        yield http


def message(run_id, projection, sketches, **more):
    ids = [f"private-{i}" for i in range(len(sketches))]
    common = {"run_id": run_id, "policy_version": 0, "projection": projection.to_map(), "problem_ids": ids}
    return {**common, "sketches": sketches.tolist(), **more}


def test_requests_are_spans_under_their_callers(traced, http, collector, trace_id, run_id, projection, sketches):
    for route in ("/refresh_validation", "/score"):
        sent = message(run_id, projection, sketches, request_id=f"{run_id}{route[1:4]}")
        assert http.post(route, json=sent).status_code == 200
    assert http.post("/select", json={"run_id": run_id, "policy_version": 0, "count": 2}).status_code == 200
    spans = collector.trace(trace_id, 3 + 3 + 4 + 3)
    refresh, score, select = (span for span in spans if span.kind == Span.SPAN_KIND_SERVER)
    assert [span.name for span in (refresh, score, select)] == [
        "POST /refresh_validation",
        "POST /score",
        "POST /select",
    ]
    assert {span.parent_span_id.hex() for span in (refresh, score, select)} == {"00f067aa0ba902b7"}
    found = attributes(score)
    seconds = {name: found.pop(name) for name in list(found) if name.startswith("gradalign.seconds.")}
    assert found == {
        "http.request.method": "POST",
        "http.route": "/score",
        "http.response.status_code": 200,
        "url.scheme": "http",
        "gradalign.run": run_id,
        "gradalign.rows": 8,
        "gradalign.request_id": f"{run_id}sco",
    }
    stages = ("receive", "decode", "load", "compute", "commit", "total")
    assert set(seconds) == {f"gradalign.seconds.{stage}" for stage in stages}
    within = [span for span in spans if span.parent_span_id == score.span_id]
    assert [span.name for span in within] == ["decode", "load", "compute", "commit"]
    assert {span.kind for span in within} == {Span.SPAN_KIND_INTERNAL}
    edges = [score.start_time_unix_nano, *(t for s in within for t in (s.start_time_unix_nano, s.end_time_unix_nano))]
    assert sorted(edges) == edges
    assert edges[-1] <= score.end_time_unix_nano
    assert abs(score.end_time_unix_nano / 1e9 - time.time()) < 60
    commit = (within[-1].end_time_unix_nano - within[-1].start_time_unix_nano) / 1e9
    assert commit == pytest.approx(seconds["gradalign.seconds.commit"], abs=1e-6)
    assert [s.name for s in spans if s.parent_span_id == refresh.span_id] == ["load", "compute", "commit"]
    assert [s.name for s in spans if s.parent_span_id == select.span_id] == ["load", "compute", "commit"]
    resource = collector.resources()[-1]
    assert (resource["service.name"], resource["deployment.environment.name"]) == ("gradalign-scorer", "test")
    lines = [json.loads(line) for line in traced.log.read_text().splitlines()]
    assert {line["trace_id"] for line in lines if line.get("run") == run_id} == {trace_id}
    assert "trace_id" not in lines[0]


def test_waiting_for_the_body_is_told_apart(traced, collector, trace_id, run_id, projection):
    rows = np.ones((4, projection.dim), np.float32)
    body = json.dumps(message(run_id, projection, rows)).encode()
    more = f"Authorization: Bearer {KEY}\r\ntraceparent: 00-{trace_id}-00f067aa0ba902b7-01\r\n\r\n"
    with traced.connect() as raw:
        raw.sendall(head("/refresh_validation", len(body), "application/json")[:-2] + more.encode() + body[:100])
        time.sleep(0.5)
        raw.sendall(body[100:])
        assert b" 200 " in raw.recv(4096)
    server = collector.trace(trace_id, 4)[0]
    length = (server.end_time_unix_nano - server.start_time_unix_nano) / 1e9
    assert 0.4 < attributes(server)["gradalign.seconds.receive"] < length


def test_refusals_say_their_type(http, collector, trace_id, run_id):
    answers = [
        http.get(f"/runs/{run_id}/problems/private-1"),
        http.get("/no/such/private-2"),
        http.request("PROPFIND", "/score"),
        http.post("/score", content=b"private-3", headers={"Content-Type": "application/json"}),
        http.get("/runs", headers={"Authorization": "Bearer private-4"}),
    ]
    # The fourth has one within it, of its decoding.
    spans = [span for span in collector.trace(trace_id, 5 + 1) if span.kind == Span.SPAN_KIND_SERVER]
    told = [(s.name, attributes(s)["http.response.status_code"], attributes(s)["error.type"]) for s in spans]
    assert told == [
        ("GET /runs/{run}/problems/{problem_id:text}", 404, "not_found"),
        ("GET", 404, "not_found"),
        ("HTTP /score", 405, "method_not_allowed"),
        ("POST /score", 400, "malformed"),
        ("GET", 401, "unauthorized"),
    ]
    assert [reply.headers["X-Request-Id"] for reply in answers] == [
        attributes(s)["gradalign.request_id"] for s in spans
    ]
    assert all(span.status.code == Status.STATUS_CODE_UNSET for span in spans)


def test_no_span_holds_a_key_a_sketch_or_a_problem(http, collector, trace_id, run_id, projection):
    rows = np.full((4, projection.dim), MARK, np.float32)
    assert http.post("/refresh_validation", json=message(run_id, projection, rows)).status_code == 200
    assert http.post("/score", json=message(run_id, projection, rows, unheard_of=MARK)).status_code == 422
    assert http.post("/score", json=message(run_id, projection, rows)).status_code == 200
    assert http.get(f"/runs/{run_id}/problems/private-0?private-1#private-2").status_code == 200
    collector.trace(trace_id, 4)
    told = " ".join(map(str, collector.spans()))
    assert run_id in told
    for word in (KEY, "private", "0.123456", "Bearer"):
        assert word not in told


def test_health_checks_and_callers_that_do_not_sample_leave_no_span(traced, http, collector, trace_id, run_id):
    for path in ("/livez", "/readyz", "/health", "/metrics"):
        assert http.get(path).status_code == 200
    unsampled = secrets.token_hex(16)
    assert http.get("/runs", headers={"traceparent": f"00-{unsampled}-00f067aa0ba902b7-00"}).status_code == 200
    assert http.get("/runs").status_code == 200
    assert [span.name for span in collector.trace(trace_id)] == ["GET /runs"]
    assert unsampled not in {span.trace_id.hex() for span in collector.spans()}


def test_what_is_left_is_exported_at_the_end(monkeypatch, start_scorer, collector, trace_id):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "named")
    process = start_scorer(TRACING="1", DRAIN_SECONDS="0")
    with process.http(headers={"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"}) as http:
        for _ in range(700):  # more than a batch
            http.get("/runs/none")
    assert not [span for span in collector.spans() if span.trace_id.hex() == trace_id][512:]
    process.process.send_signal(signal.SIGTERM)
    assert process.process.wait(120) == 0
    assert len(collector.trace(trace_id, 700)) == 700
    # A plain log names the trace too; a line is written behind its reply.
    pattern = rf"INFO gradalign_scorer\.http\.requestlog: request_id=\S+ .* error=not_found trace_id={trace_id}"
    assert len(re.findall(pattern, process.log.read_text())) == 700
    assert collector.resources()[-1]["service.name"] == "named"


@pytest.mark.parametrize("fault", ["hangs", "is away"])
def test_a_collector_in_trouble_is_nobodys_trouble(
    monkeypatch, start_scorer, collector, fault, run_id, projection, sketches, problem_ids
):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url if fault == "hangs" else "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "16")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "16")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3600")
    process = start_scorer(TRACING="1", DRAIN_SECONDS="0", GRACE_SECONDS="2")
    collector.holds.set() if fault == "hangs" else collector.holds.clear()
    slowest = 0.0
    with Client(process.url, run_id=run_id, retries=0) as client:
        client.refresh_validation(problem_ids, sketches, policy_version=0, projection=projection)
        if fault == "hangs":
            wait_until(lambda: collector.waiting)
        for _ in range(100):
            began = time.monotonic()
            client.score(problem_ids, sketches, policy_version=0, projection=projection)
            slowest = max(slowest, time.monotonic() - began)
    assert slowest < 60  # and the exporter waits for an hour
    process.process.send_signal(signal.SIGTERM)
    assert process.process.wait(120) == 0
    collector.holds.clear()
    log = process.log.read_text()
    assert "dropped the last spans, which their exporter did not take within" in log
    assert "Traceback" not in log
    if fault == "is away":
        assert "127.0.0.1" in log


def test_missing_packages_stop_the_start_and_are_not_missed_while_it_is_off():
    # As if they were not there: what stands as None in sys.modules cannot be imported.
    program = """if True:
        import sys
        sys.modules["opentelemetry.sdk"] = sys.modules["opentelemetry.exporter"] = None
        import gradalign.cli, gradalign_scorer.app, gradalign_scorer.server
        assert "gradalign_scorer.telemetry.tracing" not in sys.modules
        sys.exit(gradalign.cli.main())"""
    command = [sys.executable, "-c", program, "serve", "--tracing", "--redis-url", "redis://127.0.0.1:1", "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("gradalign: GRADALIGN_TRACING (--tracing) is on")
    assert "`pip install 'gradalign[otel]'`" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("OTEL_TRACES_EXPORTER", "jaeger", "OTEL_TRACES_EXPORTER is 'jaeger'"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier-pigeon", "OTEL_EXPORTER_OTLP_PROTOCOL is 'carrier-pigeon'"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "-1", "max_queue_size"),
    ],
)
def test_wrong_variables_stop_the_start(monkeypatch, name, value, words):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        Tracing()
    assert words in str(caught.value)
    assert "unset it" in str(caught.value)

"""A collector of OpenTelemetry spans: OTLP over HTTP, as a plugin of pytest."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector(ThreadingHTTPServer):
    """Keeps what it is sent; while `holds` is set, it answers nobody."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies: list[bytes] = []
        self.waiting = 0
        self.holds = threading.Event()
        self.let_go = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def resources(self) -> list[dict[str, str]]:
        """Attributes of the processes that sent."""
        return [
            {pair.key: pair.value.string_value for pair in sent.resource.attributes}
            for body in list(self.bodies)
            for sent in ExportTraceServiceRequest.FromString(body).resource_spans
        ]

    def spans(self) -> list[Span]:
        """All spans so far."""
        requests = [ExportTraceServiceRequest.FromString(body) for body in list(self.bodies)]
        return [s for r in requests for sent in r.resource_spans for scope in sent.scope_spans for s in scope.spans]

    def trace(self, trace_id: str, count: int = 1) -> list[Span]:
        """The spans of a trace, the first to begin first, once there are so many."""
        deadline = time.monotonic() + 120
        while True:
            found = [span for span in self.spans() if span.trace_id.hex() == trace_id]
            if len(found) >= count:
                return sorted(found, key=lambda span: span.start_time_unix_nano)
            assert time.monotonic() < deadline, f"{len(found)} spans of {count}"
            time.sleep(0.02)


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert (self.path, self.headers["Content-Type"]) == ("/v1/traces", "application/x-protobuf")
        if self.server.holds.is_set():
            self.server.waiting += 1
            self.server.let_go.wait(60)
            return
        self.server.bodies.append(body)
        reply = ExportTraceServiceResponse().SerializeToString()
        self.send_response(200)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *arguments: object) -> None:
        """Nothing: pytest's output is not its log."""


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    """A collector for a module's tests."""
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.let_go.set()
        server.shutdown()
        thread.join()


def attributes(span: Span) -> dict[str, object]:
    """A span's attributes."""
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in span.attributes}

"""What `/metrics` shows, in Prometheus' base units, and the middleware that counts requests."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gradalign_scorer.requestlog import note_stage

__all__ = ["Metrics", "RequestCounter"]

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """The scorer's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests answered.", ["route", "method", "status"])
        self.refused = self._counter("rejected", "Requests refused, by error type.", ["reason"])
        self.received = self._counter("received_bytes", "Bytes of bodies read.", [])
        self.problems = self._counter("scored_problems", "Problems ranked.", [])
        self.rows_rejected = self._counter("rejected_rows", "Rows left out for NaN or Inf.", [])
        self.repeated = self._counter("repeated_requests", "Requests answered from their stored reply.", [])
        self.request_seconds = Histogram(
            "gradalign_request_duration_seconds",
            "From the first byte of a request to the last of its answer.",
            ["route"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.stage_seconds = Histogram(
            "gradalign_score_duration_seconds",
            "Parts of a /score: read, decode, load, compute (waiting included), commit.",
            ["stage"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.queue_depth = self._gauge("queue_depth", "Jobs that wait for the compute thread.")
        self.admitted = self._gauge("admitted_requests", "Requests whose bodies are held.")
        self.admitted_bytes = self._gauge("admitted_bytes", "Bytes of bodies held.")

    def _counter(self, name: str, text: str, labels: list[str]) -> Counter:
        return Counter(f"gradalign_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"gradalign_{name}", text, registry=self.registry)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a part of a /score, for the histogram and for the request's line in the log."""
        started = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            self.stage_seconds.labels(name).observe(seconds)
            note_stage(name, seconds)

    def exposition(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)


class RequestCounter:
    """ASGI middleware that counts and times requests by the template of their route.

    Args:
        app: what stands behind it.
        metrics: to count in.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and count its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, started = 500, time.perf_counter()

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, counted)
        finally:
            # A path that no route knows is not a label: there is no end to them.
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.requests.labels(route, scope["method"], status).inc()
            self._metrics.request_seconds.labels(route).observe(time.perf_counter() - started)

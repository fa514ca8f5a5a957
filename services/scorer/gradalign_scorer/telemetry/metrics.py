"""What a scorer counts and times for `/metrics`, in Prometheus' base units, and the middleware that counts requests.

docs/monitoring.md lists every metric. What the parts know anyway is read at the scrape (`vitals.py`), and what belongs to
one run comes from the store (`runfigures.py`), so that a request pays for neither.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gradalign import RoundRecord
from gradalign_scorer.http.bodies import Body
from gradalign_scorer.http.requestlog import note_stage

__all__ = ["Metrics", "RequestCounter"]

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """The scorer's counters and histograms, in a registry of their own.

    Attributes:
        requests: answers by route, method and status.
        refused: errors by type.
        received: bytes of bodies.
        rounds: committed requests by kind.
        scored: problems ranked.
        zero_signal: those of them whose sketch is zero.
        selected: problems marked as selected.
        rows_rejected: rows left out.
        repeated: requests answered by an earlier reply.
        request_seconds: by route.
        stage_seconds: parts of a /score.
        refresh_seconds: of a whole /refresh_validation.
        select_seconds: of a whole /select.
        batches: sizes of the passes over the sketches of small requests.
    """

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, which nothing here asks for
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests answered.", ["route", "method", "status"])
        self.refused = self._counter("rejected", "Requests refused, by error type.", ["reason"])
        self.received = self._counter("received_bytes", "Bytes of request bodies.")
        self.rounds = self._counter("rounds", "Requests committed to the store, by kind.", ["kind"])
        self.scored = self._counter("scored_problems", "Problems ranked by /score.")
        self.zero_signal = self._counter("zero_signal_problems", "Problems ranked whose sketch is zero.")
        self.selected = self._counter("selected_problems", "Problems selected, by /score or /select.")
        self.rows_rejected = self._counter("rejected_rows", "Rows left out for NaN or Inf.")
        self.repeated = self._counter("repeated_requests", "Requests answered from their stored reply.")
        self.request_seconds = self._histogram(
            "request", "From the first byte of a request to the last of its answer.", ["route"]
        )
        self.stage_seconds = self._histogram(
            "score", "Parts of a /score (receive, decode, load, compute, commit), and its total.", ["stage"]
        )
        self.refresh_seconds = self._histogram("refresh", "A whole /refresh_validation.")
        self.select_seconds = self._histogram("select", "A whole /select.")
        self.batches = Histogram(
            "gradalign_score_batch_requests",
            "Small requests that shared one pass over their sketches.",
            buckets=(1, 2, 4, 8, 16),
            registry=self.registry,
        )
        # A series that begins at 1 shows no increase, so what alerts and graphs ask for begins at 0.
        for reason in ("internal", "overloaded", "unavailable"):
            self.refused.labels(reason)
        for kind in ("score", "refresh", "select"):
            self.rounds.labels(kind)

    def _counter(self, name: str, text: str, labels: list[str] | None = None) -> Counter:
        return Counter(f"gradalign_{name}", text, labels or [], registry=self.registry)

    def _histogram(self, name: str, text: str, labels: list[str] | None = None) -> Histogram:
        full = f"gradalign_{name}_duration_seconds"
        return Histogram(full, text, labels or [], buckets=_BUCKETS, registry=self.registry)

    def count_round(self, record: RoundRecord) -> None:
        """Count a committed request."""
        self.rounds.labels(record.kind).inc()
        self.selected.inc(record.selected)
        self.rows_rejected.inc(record.summary.get("rejected", 0))
        if record.kind == "score":
            self.scored.inc(record.problems)
            self.zero_signal.inc(record.summary["no_signal"])

    @contextmanager
    def stage(self, name: str, body: Body | None = None) -> Iterator[None]:
        """Time a part of a /score, for the histogram and for the request's line in the log.

        Args:
            name: of the part.
            body: whose waiting is not the part's own; it counts as `receive`.
        """
        began, waited = time.perf_counter(), body.waited if body else 0.0
        try:
            yield
        finally:
            ended, waited = time.perf_counter(), (body.waited if body else 0.0) - waited
            self.stage_seconds.labels(name).observe(ended - began - waited)
            note_stage(name, ended - began - waited, None if name == "total" else (began, ended))

    @contextmanager
    def receiving(self, body: Body) -> Iterator[None]:
        """Time what is waited for a body inside, for the histogram."""
        try:
            yield
        finally:
            self.stage_seconds.labels("receive").observe(body.waited)


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

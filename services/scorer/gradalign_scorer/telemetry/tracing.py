"""Spans of requests for OpenTelemetry, where GRADALIGN_TRACING is on; nothing imports this module before.

Exporter, sampler, resource and propagators are what the standard OTEL_* variables say. What a span holds is listed here,
and nothing else gets in: the ready-made instrumentations of ASGI apps put paths in, and so the ids of problems.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from importlib.metadata import entry_points

from opentelemetry import propagate, trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gradalign import __version__
from gradalign_scorer.http.requestlog import QUIET, RequestNotes, notes_of
from gradalign_scorer.settings import SettingsError
from gradalign_scorer.telemetry.logs import TRACE_ID

__all__ = ["RequestTracer", "Tracing"]

_GROUP = "opentelemetry_traces_exporter"
_PROTOCOLS = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"})


class Tracing:
    """Makes spans and exports them on a thread of its own: a full queue drops spans, and no request waits for it.

    Raises:
        SettingsError: an OTEL_* variable cannot be used.
    """

    def __init__(self) -> None:
        try:
            # At the interpreter's end it would be waited for without a bound.
            self._provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
            for exporter in _exporters():
                self._provider.add_span_processor(BatchSpanProcessor(exporter))
        except ValueError as error:
            raise SettingsError(
                f"GRADALIGN_TRACING (--tracing) is on, and an OTEL_* variable cannot be used: {error}; correct or unset it."
            ) from None
        self.tracer = self._provider.get_tracer("gradalign_scorer", __version__)

    async def close(self, seconds: float) -> bool:
        """Export what is left; False where that took longer, and the rest is dropped."""
        flushing = threading.Thread(target=self._provider.shutdown, daemon=True)
        flushing.start()
        await asyncio.to_thread(flushing.join, seconds)
        return not flushing.is_alive()


def _resource() -> Resource:
    own = Resource({"service.name": "gradalign-scorer", "service.version": __version__})
    given = Resource.create()
    if str(given.attributes["service.name"]).startswith("unknown_service"):  # what it says where no variable names it
        return given.merge(own)
    return own.merge(given)


def _exporters() -> Iterator[SpanExporter]:
    for name in os.environ.get("OTEL_TRACES_EXPORTER", "otlp").replace(" ", "").split(","):
        if name not in ("", "none"):
            yield _exporter(name)


def _exporter(name: str) -> SpanExporter:
    given, place = name, "OTEL_TRACES_EXPORTER"
    if name == "otlp":
        place = "OTEL_EXPORTER_OTLP_PROTOCOL"
        given = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get(place) or "http/protobuf"
        name = _PROTOCOLS.get(given, given)
    found = list(entry_points(group=_GROUP, name=name))
    try:
        package = found[0]
        exporter: SpanExporter = package.load()()
    except (IndexError, ImportError):
        known = sorted({entry.name for entry in entry_points(group=_GROUP)})
        raise SettingsError(
            f"{place} is {given!r}, for which no exporter of spans is installed (there are {', '.join(known)}); "
            "unset it for OTLP over HTTP, or install the package of that exporter."
        ) from None
    return exporter


class RequestTracer:
    """ASGI middleware that makes a span of every request, under the caller's where its `traceparent` names one.

    Health checks and scrapes get none. A stage that ran in one piece is a child span, with the waiting inside it; the
    seconds of every stage, without the waiting for the body, are attributes.

    Args:
        app: what stands behind it.
        tracing: that makes the spans.
    """

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self._app = app
        self._tracer = tracing.tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on within its span."""
        if scope["type"] != "http" or scope["path"] in QUIET:
            await self._app(scope, receive, send)
            return
        clock, status, failure = _Clock(), 500, None
        span = self._tracer.start_span(
            _verb(scope),
            context=propagate.extract(Headers(scope=scope)),
            kind=trace.SpanKind.SERVER,
            attributes={"http.request.method": _method(scope), "url.scheme": scope["scheme"]},
            start_time=clock.at(clock.began),
        )
        known = span.get_span_context()
        token = TRACE_ID.set(trace.format_trace_id(known.trace_id) if known.is_valid else None)

        async def traced(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            with trace.use_span(span, record_exception=False, set_status_on_exception=False):
                await self._app(scope, receive, traced)
        except Exception as error:
            failure = type(error).__name__
            raise
        finally:
            TRACE_ID.reset(token)
            if span.is_recording():
                self._finish(span, scope, clock, status, failure)
            span.end(clock.at(time.perf_counter()))

    def _finish(self, span: trace.Span, scope: Scope, clock: _Clock, status: int, failure: str | None) -> None:
        # The template, not the path: a path holds problem ids, and there is no end to paths that no route knows.
        route = getattr(scope.get("route"), "path", None)
        if route is not None:
            span.update_name(f"{_verb(scope)} {route}")
            span.set_attribute("http.route", route)
        span.set_attribute("http.response.status_code", status)
        if status >= 500:
            span.set_status(trace.StatusCode.ERROR)
        notes = notes_of(scope)
        if notes is not None:
            _describe(span, notes, failure)
            within = trace.set_span_in_context(span)
            for name, began, ended in notes.intervals:
                self._tracer.start_span(name, within, start_time=clock.at(began)).end(clock.at(ended))


def _method(scope: Scope) -> str:
    return scope["method"] if scope["method"] in _METHODS else "_OTHER"


def _verb(scope: Scope) -> str:
    return scope["method"] if scope["method"] in _METHODS else "HTTP"


def _describe(span: trace.Span, notes: RequestNotes, failure: str | None) -> None:
    values = {
        "gradalign.request_id": notes.request_id,
        "gradalign.run": notes.run,
        "gradalign.rows": notes.rows,
        "error.type": notes.error or failure,
        **{f"gradalign.seconds.{name}": seconds for name, seconds in notes.stages.items()},
    }
    span.set_attributes({name: value for name, value in values.items() if value is not None})


class _Clock:
    """Times of one request for its spans, by one clock that never jumps."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self._nanoseconds = time.time_ns()

    def at(self, moment: float) -> int:
        """A moment of the performance counter in nanoseconds since 1970."""
        return self._nanoseconds + round((moment - self.began) * 1e9)

"""The scorer as an ASGI app.

    app = create_app(load_settings({"redis_url": "redis://localhost"}))

`gradalign serve` runs it, with an embedded store where no URL is set.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from gradalign import (
    InvalidValue,
    MalformedRequest,
    MethodNotAllowed,
    NotFound,
    SketchMatrix,
    Unavailable,
    UnsupportedMediaType,
    WireError,
    __version__,
)
from gradalign.errors import error_from_wire
from gradalign_scorer.access.authentication import KeyGate
from gradalign_scorer.access.keyring import KeyRing
from gradalign_scorer.http.admission import Admission
from gradalign_scorer.http.bodies import BodyReader
from gradalign_scorer.http.buffers import BufferPool
from gradalign_scorer.http.negotiation import error_response
from gradalign_scorer.http.requestlog import RequestLog, notes_of
from gradalign_scorer.ranking.alignment import SketchRows, products
from gradalign_scorer.routes import OPERATIONS, WIRE, allowed_methods
from gradalign_scorer.routes.context import Context, context_of
from gradalign_scorer.routes.openapi import completed
from gradalign_scorer.service.engine import Engine, pick_device
from gradalign_scorer.service.events import Streams
from gradalign_scorer.service.requests import Service
from gradalign_scorer.service.validations import ValidationCache
from gradalign_scorer.settings import Settings, SettingsError
from gradalign_scorer.store import RunStore, Wait
from gradalign_scorer.telemetry.metrics import Metrics, RequestCounter
from gradalign_scorer.telemetry.run_metrics import RunFigures

if TYPE_CHECKING:
    from gradalign_scorer.telemetry.tracing import Tracing

__all__ = ["create_app"]

_LOG = logging.getLogger(__name__)
_LAST_SECONDS = 1.0
"""For the compute thread to end: whoever waited for it had the grace to do so, and is gone."""
_FLUSH_SECONDS = 5.0
"""For the last spans, within the grace; where that is used up, `_LAST_SECONDS`."""


class _App(FastAPI):
    def openapi(self) -> dict[str, Any]:
        return completed(super().openapi())


def create_app(settings: Settings) -> FastAPI:
    """The app of one scorer process; its parts start with its lifespan.

    Raises:
        SettingsError: no store is named, or the key file cannot be used.
        GradAlignError: the device cannot be used.
    """
    if settings.redis_url is None:
        raise SettingsError("GRADALIGN_REDIS_URL is not set; `gradalign serve` starts an embedded store without it.")
    context = _context(settings, settings.redis_url)
    app = _App(
        title="GradAlign scorer",
        version=__version__,
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.context = context
    # The last one added is the first to see a request.
    app.add_middleware(KeyGate, keys=context.keys)
    app.add_middleware(RequestCounter, metrics=context.metrics)
    app.add_middleware(RequestLog)
    if context.tracing is not None:
        from gradalign_scorer.telemetry.tracing import RequestTracer

        app.add_middleware(RequestTracer, tracing=context.tracing)
    for router in WIRE:
        app.include_router(router)
        app.include_router(router, prefix="/v1", include_in_schema=False)
    for router in OPERATIONS:
        app.include_router(router)
    for kind in (WireError, HTTPException, RequestValidationError, ClientDisconnect, Exception):
        app.add_exception_handler(kind, _answer_error)
    return app


def _context(settings: Settings, redis_url: str) -> Context:
    engine = Engine(pick_device(settings.device), settings.queue_size, stuck_seconds=settings.stuck_seconds)
    replicas = settings.redis_wait_replicas
    store = RunStore.connect(redis_url, wait=Wait(replicas, settings.redis_wait_seconds) if replicas else None)
    admission, metrics = Admission(settings.max_requests, settings.max_admitted_bytes), Metrics()
    figures = RunFigures(store, settings.metrics_runs)
    return Context(
        settings=settings,
        store=store,
        engine=engine,
        admission=admission,
        bodies=BodyReader(settings, admission, BufferPool(settings.pool_bytes, pinned=engine.device.type == "cuda")),
        service=Service(store, engine, ValidationCache(store, settings.cache_bytes), metrics, figures),
        metrics=metrics,
        run_figures=figures,
        keys=KeyRing(settings.keys(), settings.api_key_file),
        streams=Streams(store, settings.max_streams),
        tracing=_tracing() if settings.tracing else None,
    )


def _tracing() -> Tracing:
    try:
        from gradalign_scorer.telemetry.tracing import Tracing
    except ImportError as error:
        raise SettingsError(
            f"GRADALIGN_TRACING (--tracing) is on, and OpenTelemetry is not installed ({error}); "
            "`pip install 'gradalign[otel]'`, or turn it off."
        ) from None
    return Tracing()


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    context: Context = app.state.context
    context.engine.start()
    await context.engine.run(lambda: _warm_up(context.engine.device, context.settings.threads))
    context.warm = True
    _LOG.info("computing on %s", context.engine.device)
    report = asyncio.create_task(_report_store(context.store))
    try:
        yield
    finally:
        report.cancel()
        context.draining = True
        await asyncio.gather(_end_engine(context.engine), _end_tracing(context))
        await context.store.close()


async def _report_store(store: RunStore) -> None:
    """Say at the start what /readyz will say; a store that is not there yet may come."""
    try:
        for warning in await store.check():
            _LOG.warning("%s", warning)
    except Unavailable as error:
        _LOG.error("not ready: %s", error.message)


async def _end_engine(engine: Engine) -> None:
    if not await asyncio.to_thread(engine.close, _LAST_SECONDS):
        _LOG.error("the compute thread did not end within %g s", _LAST_SECONDS)


async def _end_tracing(context: Context) -> None:
    if context.tracing is None:
        return
    left = _FLUSH_SECONDS if context.ends_at is None else context.ends_at - time.monotonic()
    seconds = max(_LAST_SECONDS, min(_FLUSH_SECONDS, left))
    if not await context.tracing.close(seconds):
        _LOG.warning("dropped the last spans, which their exporter did not take within %g s", seconds)


def _warm_up(device: torch.device, threads: int) -> None:
    """The first computation pays for a device's start; let it not be a trainer's."""
    torch.set_num_threads(threads)  # here, since OpenMP keeps the number for each thread
    rows = SketchRows([SketchMatrix.of(np.ones((2, 64), dtype=np.float16))])
    products(rows, torch.ones(64), device)


async def _answer_error(request: Request, error: Exception) -> Response:
    """Every error, the framework's own included, in the wire's shape."""
    wire, headers = _wire_error(request, error)
    if wire.status >= 500 and wire.type == "internal":
        _LOG.error("%s %r failed: %r", request.method, request.url.path[:200], error)
    context_of(request).metrics.refused.labels(wire.type).inc()
    response = error_response(request.scope, wire, headers)
    notes = notes_of(request.scope)
    if notes is not None:  # what was not foreseen is answered outside the request log, which names all else
        response.headers["X-Request-Id"] = notes.request_id
    return response


def _wire_error(request: Request, error: Exception) -> tuple[WireError, Mapping[str, str]]:
    if isinstance(error, WireError):
        coded = isinstance(error, UnsupportedMediaType) and error.param == "Content-Encoding"
        return error, {"Accept-Encoding": "identity"} if coded else {}  # as RFC 9110 asks, 15.5.16
    if isinstance(error, HTTPException):
        return _of_framework(request, error)
    if isinstance(error, RequestValidationError):
        return InvalidValue(f"the request is not valid: {_first_fault(error)}."), {}
    if isinstance(error, ClientDisconnect):
        return MalformedRequest("the connection was closed before the whole body came."), {}
    return WireError(
        f"the scorer failed on this request ({type(error).__name__}); nothing of it was stored. Its log has the details; "
        "please report them."
    ), {}


def _of_framework(request: Request, error: HTTPException) -> tuple[WireError, Mapping[str, str]]:
    path, headers = request.url.path, error.headers or {}
    place = f"{request.method} {path[:200]}"
    if error.status_code == 404:
        return NotFound(f"there is no route {place}; GET /docs lists the routes."), headers
    if error.status_code == 405:
        allowed = ", ".join(allowed_methods(path)) or headers.get("Allow", "GET, HEAD")
        return MethodNotAllowed(f"there is no route {place}; this path takes {allowed}."), {"Allow": allowed}
    return error_from_wire(error.status_code, {"error": {"message": f"{place}: {error.detail}"}}), headers


def _first_fault(error: RequestValidationError) -> str:
    fault: Mapping[str, Any] = error.errors()[0]
    return f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"

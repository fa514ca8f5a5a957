"""What operators and orchestrators ask: does it live, is it ready, how is it, and its metrics."""

from __future__ import annotations

import time
from collections.abc import Iterator

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.requests import Request
from starlette.responses import Response

from gradalign import Unavailable, __version__
from gradalign_scorer.access.scopes import Access, access_of
from gradalign_scorer.http.negotiation import response
from gradalign_scorer.routes.context import Context, context_of
from gradalign_scorer.routes.openapi import HEALTH, WARNINGS, Schema, operation

__all__ = ["exposition", "router"]

router = APIRouter(tags=["operations"])


def _status(word: str) -> Schema:
    return {"type": "object", "required": ["status"], "properties": {"status": {"const": word}}}


@router.get("/livez", openapi_extra=operation(_status("alive")), response_model=None)
async def livez(request: Request) -> Response:
    """Whether the compute thread answers; restart the scorer when it does not."""
    if not await context_of(request).engine.alive():
        raise Unavailable("the compute thread does not answer; restart this scorer (its state is in the store).")
    return response(request.scope, {"status": "alive"})


_READY: Schema = _status("ready")
_READY["properties"]["warnings"] = WARNINGS


@router.get("/readyz", openapi_extra=operation(_READY), response_model=None)
async def readyz(request: Request) -> Response:
    """Whether to send requests here: the store can hold runs, the engine is warm, and no shutdown is under way."""
    context = context_of(request)
    if context.draining:
        raise Unavailable("this scorer is shutting down; send requests to another.")
    if not context.warm:
        raise Unavailable("this scorer is starting; wait for it.")
    warnings = await context.store.check()
    return response(request.scope, {"status": "ready", **({"warnings": warnings} if warnings else {})})


@router.get("/health", openapi_extra=operation(HEALTH), response_model=None)
async def health(request: Request) -> Response:
    """The scorer's own account of itself; always 200 while it can answer."""
    context = context_of(request)
    store, warnings = await _store_state(context)
    alive = await context.engine.alive()
    good = alive and store == "reachable" and context.warm and not context.draining
    return response(
        request.scope,
        {
            "status": "ok" if good else "degraded",
            "version": __version__,
            "device": str(context.engine.device),
            "compute": "alive" if alive else "stuck",
            "store": store,
            "warm": context.warm,
            "draining": context.draining,
            "queue_depth": context.engine.depth,
            "admitted_requests": context.admission.requests,
            "uptime_seconds": time.monotonic() - context.started_at,
            **({"warnings": warnings} if warnings else {}),
        },
    )


async def _store_state(context: Context) -> tuple[str, tuple[str, ...]]:
    try:
        return "reachable", await context.store.check()
    except Unavailable as error:
        return error.message, ()


@router.get("/metrics", openapi_extra=operation({"type": "string"}, media_type="text/plain"), response_model=None)
async def metrics(request: Request) -> Response:
    """Metrics for Prometheus."""
    text = await exposition(context_of(request), access_of(request))
    return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})


_PROCESS = ProcessCollector(registry=None)


async def exposition(context: Context, access: Access) -> bytes:
    """The text that Prometheus scrapes.

    Args:
        context: of the scorer.
        access: of the key; runs out of its scope are left out.
    """
    reachable = await context.run_figures.look()
    alive = await context.engine.alive()
    page = CollectorRegistry()
    page.register(_Page([*_vitals(context, reachable, alive), *context.run_figures.families(access.allows_run)]))
    return generate_latest(context.metrics.registry) + generate_latest(page)


class _Page:
    """Families that are made already, as the library wants to be given them."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def _vitals(context: Context, reachable: bool, alive: bool) -> Iterator[Metric]:
    engine, admission, tally = context.engine, context.admission, context.store.tally
    build = GaugeMetricFamily("gradalign_build_info", "Version and device; always 1.", labels=["version", "device"])
    build.add_metric([__version__, str(engine.device)], 1)
    yield build
    for name, text, value in (
        ("store_up", "Whether the store answers.", reachable),
        ("compute_up", "Whether the compute thread answers.", alive),
        ("draining", "Whether the scorer is shutting down.", context.draining),
        ("queue_depth", "Jobs that wait for the compute thread.", engine.depth),
        ("queue_capacity", "Jobs that may wait for the compute thread.", engine.capacity),
        ("admitted_requests", "Requests whose bodies are held.", admission.requests),
        ("admitted_requests_limit", "Requests whose bodies may be held.", admission.max_requests),
        ("admitted_bytes", "Bytes of bodies held.", admission.bytes),
        ("admitted_bytes_limit", "Bytes of bodies that may be held.", admission.max_bytes),
        ("event_streams", "Pages that watch a run.", context.streams.open),
    ):
        yield GaugeMetricFamily(f"gradalign_{name}", text, float(value))
    for name, text, count in (
        ("compute_busy_seconds", "Time that the compute thread has worked.", engine.busy_seconds),
        ("store_retries", "Tries of the store that were made again.", tally.retries),
        ("store_failures", "Calls of the store that failed, retries included.", tally.failures),
    ):
        yield CounterMetricFamily(f"gradalign_{name}", text, float(count))
    yield from _PROCESS.collect()

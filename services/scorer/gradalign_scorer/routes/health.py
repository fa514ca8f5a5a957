"""What operators and orchestrators ask: does it live, is it ready, how is it."""

from __future__ import annotations

import time

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from gradalign import Unavailable, __version__
from gradalign_scorer.access import access_of
from gradalign_scorer.context import Context, context_of
from gradalign_scorer.negotiation import response
from gradalign_scorer.schemas import HEALTH, WARNINGS, Schema, operation
from gradalign_scorer.vitals import exposition

__all__ = ["router"]

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

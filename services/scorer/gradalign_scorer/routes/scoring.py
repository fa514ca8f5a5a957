"""`POST /score`, `/refresh_validation` and `/select`: the requests that change a run."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from gradalign import Ranking, RefreshReply, RefreshRequest, ScoreRequest, Selection, SelectRequest
from gradalign_scorer.http.negotiation import packed_response
from gradalign_scorer.routes.context import context_of
from gradalign_scorer.routes.openapi import operation
from gradalign_scorer.routes.parsing import admit_run, parse_select, parse_sketches

__all__ = ["router"]

router = APIRouter(tags=["curriculum"])


@router.post("/score", openapi_extra=operation(Ranking, request=ScoreRequest), response_model=None)
async def score(request: Request) -> Response:
    """Rank candidate problems, best first, and remember their scores."""
    context = context_of(request)
    metrics = context.metrics
    with metrics.stage("total"):
        async with context.bodies.read(request) as body:
            metrics.received.inc(len(body.data))
            with metrics.receiving(body):
                with metrics.stage("decode", body):
                    message = await parse_sketches(ScoreRequest, body)
                admit_run(request, message)
                return packed_response(request.scope, await context.service.score(message, body))


@router.post("/refresh_validation", openapi_extra=operation(RefreshReply, request=RefreshRequest), response_model=None)
async def refresh_validation(request: Request) -> Response:
    """Replace the run's validation gradient by that of the problems sent."""
    context = context_of(request)
    with context.metrics.refresh_seconds.time():
        async with context.bodies.read(request) as body:
            context.metrics.received.inc(len(body.data))
            message = await parse_sketches(RefreshRequest, body)
            admit_run(request, message)
            return packed_response(request.scope, await context.service.refresh(message, body))


@router.post("/select", openapi_extra=operation(Selection, request=SelectRequest), response_model=None)
async def select(request: Request) -> Response:
    """Pick problems from the priorities of all rounds."""
    context = context_of(request)
    with context.metrics.select_seconds.time():
        async with context.bodies.read(request, parsed=True) as body:
            context.metrics.received.inc(len(body.data))
            message = await parse_select(body)
            admit_run(request, message)
            return packed_response(request.scope, await context.service.select(message, body))

"""`POST /score`: rank candidate problems."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from gradalign import Ranking, ScoreRequest
from gradalign_scorer.context import context_of
from gradalign_scorer.negotiation import packed_response
from gradalign_scorer.routes.parsing import admit_run, parse_sketches
from gradalign_scorer.schemas import operation

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

"""`POST /refresh_validation`: replace the validation gradient."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from gradalign import RefreshReply, RefreshRequest
from gradalign_scorer.context import context_of
from gradalign_scorer.negotiation import packed_response
from gradalign_scorer.routes.parsing import admit_run, parse_sketches
from gradalign_scorer.schemas import operation

__all__ = ["router"]

router = APIRouter(tags=["curriculum"])


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

"""`POST /select`: pick problems from the stored priorities."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from gradalign import Selection, SelectRequest
from gradalign_scorer.context import context_of
from gradalign_scorer.negotiation import packed_response
from gradalign_scorer.routes.parsing import admit_run, parse_select
from gradalign_scorer.schemas import operation

__all__ = ["router"]

router = APIRouter(tags=["curriculum"])


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

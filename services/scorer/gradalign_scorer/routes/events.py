"""`/runs/{run}/events`: the rounds of a run as they are committed."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from gradalign import Unavailable
from gradalign_scorer.routes.context import context_of
from gradalign_scorer.routes.openapi import RunName, operation, query
from gradalign_scorer.routes.parsing import run_parameter
from gradalign_scorer.service.events import Place

__all__ = ["router"]

router = APIRouter(tags=["runs"])

_HEADERS = {
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
}  # a proxy that waits for more would hold events back
_AFTER = query("after", "Begin behind this round, or behind the event of this id; the header Last-Event-ID goes first.")


@router.get(
    "/runs/{run}/events",
    openapi_extra=operation({"type": "string"}, parameters=[_AFTER], media_type="text/event-stream"),
    response_model=None,
)
async def watch(request: Request, run: RunName) -> Response:
    """Committed requests as server-sent events, from the next one on."""
    name, context = run_parameter(request, run), context_of(request)
    if context.draining:
        raise Unavailable("this scorer is shutting down; ask another.", retry_after=1.0)
    given = request.headers.get("Last-Event-ID") or request.query_params.get("after")
    known = Place.parse(given) if given else None
    newest = await context.streams.newest(name)
    context.streams.check()
    if request.method == "HEAD":  # whose reply ends with its headers
        return Response(headers=_HEADERS, media_type="text/event-stream")
    events = context.streams.events(name, known or newest, lambda: context.draining)
    return StreamingResponse(events, media_type="text/event-stream", headers=_HEADERS)

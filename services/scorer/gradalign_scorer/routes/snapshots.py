"""`/runs/{run}/snapshots`: keep and put back a run's curriculum, as a trainer does with its checkpoints."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from gradalign import RunState
from gradalign.wire.checks import check_name
from gradalign_scorer.http.negotiation import response
from gradalign_scorer.routes.context import context_of
from gradalign_scorer.routes.openapi import RunName, SnapshotName, integer_query, operation
from gradalign_scorer.routes.parsing import epoch_parameter, run_parameter

__all__ = ["router"]

router = APIRouter(tags=["snapshots"])

_EPOCH = [integer_query("epoch", "Fencing token: a lower one than the run has seen is refused.")]


@router.post("/runs/{run}/snapshots/{name}", openapi_extra=operation(RunState, parameters=_EPOCH), response_model=None)
async def take_snapshot(request: Request, run: RunName, name: SnapshotName) -> Response:
    """Keep a copy of the curriculum under a name, replacing an earlier copy of that name."""
    store, run_id = context_of(request).store, run_parameter(request, run)
    await store.snapshot(run_id, check_name("name", name), epoch_parameter(request))
    return response(request.scope, (await store.run_state(run_id)).to_map())


@router.post(
    "/runs/{run}/snapshots/{name}/restore", openapi_extra=operation(RunState, parameters=_EPOCH), response_model=None
)
async def restore_snapshot(request: Request, run: RunName, name: SnapshotName) -> Response:
    """Put the curriculum back to a snapshot."""
    store, run_id = context_of(request).store, run_parameter(request, run)
    await store.restore(run_id, check_name("name", name), epoch_parameter(request))
    return response(request.scope, (await store.run_state(run_id)).to_map())

"""`/runs`: what the scorer holds of each run."""

from __future__ import annotations

import time

from fastapi import APIRouter
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import Response

from gradalign import ProblemPage, ProblemState, RankingOutline, RoundRecord, RunState
from gradalign.wire.checks import check_text
from gradalign_scorer.access.scopes import access_of
from gradalign_scorer.http.negotiation import response
from gradalign_scorer.routes.context import context_of
from gradalign_scorer.routes.openapi import ProblemId, RunName, integer_query, listing, operation, query
from gradalign_scorer.routes.parsing import epoch_parameter, integer_parameter, run_parameter
from gradalign_scorer.service.advice import advised

__all__ = ["router"]

router = APIRouter(tags=["runs"])


class _AnyText(Convertor[str]):
    """The rest of a path, line breaks too, which the framework's `path` leaves out."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("text", _AnyText())

_MOST = 1000
_LONGEST_CURSOR = 2048  # an id of 256 characters of four bytes, and a number, in base64
_LIMIT = integer_query("limit", "How many rows, 1 to 1000; 100 by default.", low=1, high=_MOST)


@router.get("/runs", openapi_extra=operation(listing("runs", RunState)), response_model=None)
async def list_runs(request: Request) -> Response:
    """All runs that the key is for, the one changed last first."""
    store, access = context_of(request).store, access_of(request)
    states = [state for state in await store.list_runs() if access.allows_run(state.run_id)]
    return response(request.scope, {"runs": [state.to_map() for state in await advised(store, states, time.time())]})


@router.get("/runs/{run}", openapi_extra=operation(RunState), response_model=None)
async def show_run(request: Request, run: RunName) -> Response:
    """One run."""
    name, store = run_parameter(request, run), context_of(request).store
    (state,) = await advised(store, [await store.run_state(name)], time.time())
    return response(request.scope, state.to_map())


@router.delete("/runs/{run}", openapi_extra=operation(None, parameters=[integer_query("epoch", "Fencing token.")]))
async def delete_run(request: Request, run: RunName) -> Response:
    """Forget a run, its snapshots included."""
    epoch = epoch_parameter(request)
    await context_of(request).store.delete_run(run_parameter(request, run), epoch)
    return Response(status_code=204)


@router.get(
    "/runs/{run}/problems",
    openapi_extra=operation(ProblemPage, parameters=[query("cursor", "The `next` of the page before."), _LIMIT]),
    response_model=None,
)
async def list_problems(request: Request, run: RunName) -> Response:
    """Problems by priority, in pages."""
    limit = integer_parameter(request, "limit", 100, low=1, high=_MOST)
    cursor = request.query_params.get("cursor") or None
    if cursor is not None:
        check_text("cursor", cursor, most=_LONGEST_CURSOR)
    page = await context_of(request).store.page_problems(run_parameter(request, run), cursor, limit)
    return response(request.scope, page.to_map())


@router.get(
    "/runs/{run}/outline",
    openapi_extra=operation(
        RankingOutline,
        parameters=[
            integer_query("ends", "How many of the first and of the last, 0 to 100; 10 by default.", high=100),
            integer_query("sample", "How many evenly spaced ones, 0 to 500; none by default.", high=500),
        ],
    ),
    response_model=None,
)
async def outline_problems(request: Request, run: RunName) -> Response:
    """The ranking at a glance."""
    ends = integer_parameter(request, "ends", 10, high=100)
    sample = integer_parameter(request, "sample", 0, high=500)
    outline = await context_of(request).store.outline(run_parameter(request, run), ends, sample)
    return response(request.scope, outline.to_map())


@router.get("/runs/{run}/problems/{problem_id:text}", openapi_extra=operation(ProblemState), response_model=None)
async def show_problem(request: Request, run: RunName, problem_id: ProblemId) -> Response:
    """One problem with its history; quote its id."""
    name = run_parameter(request, run)
    state = await context_of(request).store.problem(name, check_text("problem_id", problem_id, most=256))
    return response(request.scope, state.to_map())


@router.get(
    "/runs/{run}/rounds",
    openapi_extra=operation(
        listing("rounds", RoundRecord), parameters=[integer_query("after", "Rounds with a higher number only."), _LIMIT]
    ),
    response_model=None,
)
async def list_rounds(request: Request, run: RunName) -> Response:
    """Committed requests, oldest first."""
    after = integer_parameter(request, "after", 0)
    limit = integer_parameter(request, "limit", 100, low=1, high=_MOST)
    rounds = await context_of(request).store.rounds(run_parameter(request, run), after, limit)
    return response(request.scope, {"rounds": [record.to_map() for record in rounds]})

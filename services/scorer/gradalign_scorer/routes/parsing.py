"""From bytes and query strings to checked values."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from starlette.requests import Request

from gradalign import InvalidValue, RefreshRequest, ScoreRequest, SelectRequest
from gradalign.wire.checks import check_int, check_name, shown
from gradalign.wire.codec import MSGPACK, decode_arriving, decode_request, decode_value, media_type
from gradalign.wire.messages import MAX_POOL
from gradalign_scorer.access.scopes import access_of
from gradalign_scorer.http.bodies import Body
from gradalign_scorer.http.requestlog import note

__all__ = ["admit_run", "epoch_parameter", "integer_parameter", "parse_select", "parse_sketches", "run_parameter"]

_FIRST_LOOK = 256 << 10

Sketched = TypeVar("Sketched", ScoreRequest, RefreshRequest)


async def parse_sketches(message: type[Sketched], body: Body) -> Sketched:
    """A request whose sketches view the body, as soon as its header is there; the sketches may still be coming."""
    await body.until(_FIRST_LOOK)
    while body.arrived < len(body.data) and media_type(body.content_type) == MSGPACK:
        arrived = body.arrived
        request = await asyncio.to_thread(decode_arriving, message, body.data, arrived)
        if request is not None:
            return request
        await body.until(2 * arrived)
    await body.whole()
    return await asyncio.to_thread(decode_request, message, body.content_type, body.data)


async def parse_select(body: Body) -> SelectRequest:
    """A /select request."""
    await body.whole()

    def parsed() -> SelectRequest:
        return SelectRequest.from_json(decode_value(bytes(body.data), body.content_type, most_items=MAX_POOL))

    # The features of a large pool take long enough to hold up everyone else.
    return parsed() if len(body.data) < _FIRST_LOOK else await asyncio.to_thread(parsed)


def admit_run(request: Request, message: ScoreRequest | RefreshRequest | SelectRequest) -> None:
    """Refuse a message about a run that the request's key is not for, and note the others for the log.

    Raises:
        Forbidden: naming the run and what the key is for.
    """
    note(
        run=message.run_id,
        request_id=message.request_id,
        rows=None if message.problem_ids is None else len(message.problem_ids),
    )
    access_of(request).check_run(message.run_id, message.request_id)


def run_parameter(request: Request, run: str) -> str:
    """The run in a path, checked as `admit_run` checks that of a message.

    Raises:
        InvalidValue: not a run's name.
        Forbidden: not one that the request's key is for.
    """
    note(run=check_name("run_id", run))
    access_of(request).check_run(run)
    return run


def integer_parameter(request: Request, name: str, default: int, *, low: int = 0, high: int = 2**53 - 1) -> int:
    """A query parameter as an integer in [low, high], or its default.

    Raises:
        InvalidValue: naming the parameter.
    """
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit()):
        raise InvalidValue(f"{name} is {shown(text)}; expected an integer from {low} to {high}.", param=name)
    # Long digit strings take quadratic time, and are too large from the 17th on anyway.
    return check_int(name, int(text[:20]), low=low, high=high)


def epoch_parameter(request: Request) -> int | None:
    """The fencing token in the query string; None for none."""
    return integer_parameter(request, "epoch", 0) if "epoch" in request.query_params else None

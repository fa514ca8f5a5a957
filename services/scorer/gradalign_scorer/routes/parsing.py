"""From bytes and query strings to checked values."""

from __future__ import annotations

from typing import TypeVar

from starlette.requests import Request

from gradalign import InvalidValue, RefreshRequest, ScoreRequest, SelectRequest
from gradalign.checks import check_int, check_name, shown
from gradalign.codec import decode_request, decode_value
from gradalign.messages import MAX_POOL
from gradalign_scorer.access import access_of
from gradalign_scorer.bodies import Body
from gradalign_scorer.requestlog import note

__all__ = ["admit_run", "epoch_parameter", "integer_parameter", "parse_select", "parse_sketches", "run_parameter"]

Sketched = TypeVar("Sketched", ScoreRequest, RefreshRequest)


def parse_sketches(message: type[Sketched], body: Body) -> tuple[Sketched, bytes]:
    """A request whose sketches view the body, and the digest that goes with its request id (empty without one)."""
    request = decode_request(message, body.content_type, body.data)
    return request, body.digest() if request.request_id else b""


def parse_select(body: Body) -> tuple[SelectRequest, bytes]:
    """A /select request, and its digest."""
    request = SelectRequest.from_json(decode_value(bytes(body.data), body.content_type, most_items=MAX_POOL))
    return request, body.digest()


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

"""From bytes and query strings to checked values."""

from __future__ import annotations

from typing import TypeVar

from starlette.requests import Request

from gradalign import InvalidValue, RefreshRequest, ScoreRequest, SelectRequest
from gradalign.checks import check_int, shown
from gradalign.codec import decode_request, decode_value
from gradalign_scorer.bodies import Body

__all__ = ["epoch_parameter", "integer_parameter", "parse_select", "parse_sketches"]

Sketched = TypeVar("Sketched", ScoreRequest, RefreshRequest)


def parse_sketches(message: type[Sketched], body: Body) -> tuple[Sketched, bytes]:
    """A request whose sketches view the body, and the digest that goes with its request id (empty without one)."""
    request = decode_request(message, body.content_type, body.data)
    return request, body.digest() if request.request_id else b""


def parse_select(body: Body) -> tuple[SelectRequest, bytes]:
    """A /select request, and its digest."""
    request = SelectRequest.from_json(decode_value(bytes(body.data), body.content_type))
    return request, body.digest()


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

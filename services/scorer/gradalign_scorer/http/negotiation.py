"""Replies and errors in the encoding that the Accept header asks for."""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import Response

from gradalign import UnavailableError, WireError
from gradalign.wire.codec import JSON, MSGPACK, decode_value, encode_value, media_type
from gradalign_scorer.http.requestlog import note

__all__ = ["accepted", "error_response", "mark_body_read", "packed_response", "response"]

Scope = MutableMapping[str, Any]
_BODY_READ = "gradalign.body_read"


def accepted(scope: Scope) -> str:
    """`application/msgpack` where the Accept header prefers it to JSON; else JSON."""
    weights = {JSON: 0.0, MSGPACK: 0.0}
    for part in Headers(scope=scope).get("Accept", "").split(","):
        kind, _, parameters = part.partition(";")
        if (name := media_type(kind)) in weights:
            weights[name] = max(weights[name], _quality(parameters))
    return MSGPACK if weights[MSGPACK] > weights[JSON] else JSON


def _quality(parameters: str) -> float:
    name, _, value = parameters.strip().partition("=")
    try:
        return float(value) if name.strip() == "q" else 1.0
    except ValueError:
        return 1.0


def response(scope: Scope, value: Mapping[str, Any], *, status: int = 200) -> Response:
    """A value in the accepted encoding."""
    kind = accepted(scope)
    return Response(encode_value(value, kind), status, media_type=kind)


def packed_response(scope: Scope, packed: bytes) -> Response:
    """A value that is already msgpack, as the store keeps replies."""
    if accepted(scope) == MSGPACK:
        return Response(packed, media_type=MSGPACK)
    return response(scope, decode_value(packed, MSGPACK))


def mark_body_read(scope: Scope) -> None:
    """Note that no byte of the request is left on its connection."""
    scope[_BODY_READ] = True


def error_response(scope: Scope, error: WireError, headers: Mapping[str, str] | None = None) -> Response:
    """An error in the wire's shape; the connection is closed where the request's body was not read."""
    note(error=error.type, request_id=error.request_id)
    result = response(scope, error.to_wire(), status=error.status)
    result.headers.update(headers or {})
    if isinstance(error, UnavailableError):
        seconds = error.retry_after or 1.0
        result.headers["Retry-After"] = str(math.ceil(seconds))
        result.headers["Retry-After-Ms"] = str(math.ceil(1000 * seconds))
    given = Headers(scope=scope)
    has_body = given.get("Content-Length", "0") != "0" or "Transfer-Encoding" in given
    if has_body and not scope.get(_BODY_READ):
        result.headers["Connection"] = "close"
    return result

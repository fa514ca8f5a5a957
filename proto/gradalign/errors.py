"""Every error that the service answers with or the client raises, in one tree.

The scorer raises these classes, the wire carries their `type`, and the client raises the same class again, so an
`except` clause reads the same on both sides.

    GradAlignError
    ├── RequestError                the request cannot succeed as it was sent
    │   ├── MalformedRequest        400
    │   ├── Unauthorized            401
    │   ├── Forbidden               403
    │   ├── NotFound                404
    │   ├── Conflict                409
    │   │   ├── ValidationMissing   no validation gradient is held for the run
    │   │   ├── ValidationMismatch  `dots` or `products` were taken against a version that is not the current one
    │   │   ├── ProjectionMismatch  the sketches were made in another way than the run's
    │   │   │   └── KindMismatch    the run has sketches, not products, or the reverse, or another kind of alignments
    │   │   ├── StalePolicy         the policy version went backwards
    │   │   ├── Fenced              a newer epoch of the run has taken over
    │   │   └── RequestIdReused     the request id belongs to another request
    │   ├── PayloadTooLarge         413
    │   ├── UnsupportedMediaType    415
    │   └── InvalidValue            422
    ├── UnavailableError            the same request may succeed later
    │   ├── Overloaded              429
    │   ├── Unavailable             503
    │   └── Unreachable             no reply came: connection refused, reset or timed out
    ├── SketchError                 a sketch cannot be made of this model or these gradients
    └── DirectionError              a product along the validation gradient cannot be taken, or not be trusted
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

__all__ = [
    "Conflict",
    "DirectionError",
    "Fenced",
    "Forbidden",
    "GradAlignError",
    "InvalidValue",
    "KindMismatch",
    "MalformedRequest",
    "MethodNotAllowed",
    "NotFound",
    "Overloaded",
    "PayloadTooLarge",
    "ProjectionMismatch",
    "RequestError",
    "RequestIdReused",
    "SketchError",
    "StalePolicy",
    "Unauthorized",
    "Unavailable",
    "UnavailableError",
    "Unreachable",
    "UnsupportedMediaType",
    "ValidationMismatch",
    "ValidationMissing",
    "WireError",
]


class GradAlignError(Exception):
    """Base of every error this package raises on purpose."""


class WireError(GradAlignError):
    """An error with a place on the wire: `{"error": {"type", "message", "param", "request_id"}}`.

    Args:
        message: what was sent, what was expected and what to do about it.
        param: the header key, query parameter or HTTP header at fault.
        request_id: the id of the request that failed, where it had one.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "internal"

    def __init__(self, message: str, *, param: str | None = None, request_id: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.request_id = request_id

    def to_wire(self) -> dict[str, Any]:
        """The body that carries this error over HTTP."""
        return {
            "error": {
                "type": self.type,
                "message": self.message,
                "param": self.param,
                "request_id": self.request_id,
            }
        }


class RequestError(WireError):
    """The request cannot succeed as it was sent; sending it again changes nothing."""

    status = 400
    type = "bad_request"


class MalformedRequest(RequestError):
    """400: the bytes are not what the Content-Type says they are."""

    type = "malformed"


class Unauthorized(RequestError):
    """401: no API key, or one the scorer does not know."""

    status = 401
    type = "unauthorized"


class Forbidden(RequestError):
    """403: the API key is accepted, but not for this run or not for writing."""

    status = 403
    type = "forbidden"


class NotFound(RequestError):
    """404: no such run, problem, snapshot or route."""

    status = 404
    type = "not_found"


class MethodNotAllowed(RequestError):
    """405: the route exists, with another method."""

    status = 405
    type = "method_not_allowed"


class Conflict(RequestError):
    """409: the request disagrees with what the run already holds."""

    status = 409
    type = "conflict"


class ValidationMissing(Conflict):
    """The run holds no validation gradient yet."""

    type = "validation_missing"


class ValidationMismatch(Conflict):
    """`dots_version`, `products_version` or `decay_version` names a validation version that is not the current one."""

    type = "validation_mismatch"


class ProjectionMismatch(Conflict):
    """The sketches were made with another projection than the run's."""

    type = "projection_mismatch"


class KindMismatch(ProjectionMismatch):
    """The run has sketches and the request products, or the reverse; or its alignments are of another kind."""

    type = "kind_mismatch"


class FeaturesMismatch(Conflict):
    """The features have another width than the run's."""

    type = "features_mismatch"


class StalePolicy(Conflict):
    """The policy version is lower than one the run has already seen."""

    type = "stale_policy"


class Fenced(Conflict):
    """A newer epoch of this run has taken over; this writer must stop."""

    type = "fenced"


class RequestIdReused(Conflict):
    """The request id was used before, for a request with another content."""

    type = "request_id_reused"


class PayloadTooLarge(RequestError):
    """413: the body is larger than the scorer takes; answered before the body is read."""

    status = 413
    type = "too_large"


class UnsupportedMediaType(RequestError):
    """415: neither msgpack nor JSON, or compressed."""

    status = 415
    type = "unsupported_media_type"


class InvalidValue(RequestError):
    """422: well-formed, but a length, dimension, value or name is wrong."""

    status = 422
    type = "invalid_value"


class UnavailableError(WireError):
    """The same request may succeed later.

    Args:
        retry_after: seconds to wait first, where the scorer said so.
    """

    status = 503
    type = "unavailable"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, param=param, request_id=request_id)
        self.retry_after = retry_after


class Overloaded(UnavailableError):
    """429: the scorer's queue is full."""

    status = 429
    type = "overloaded"


class Unavailable(UnavailableError):
    """503: the store is away, or the scorer is starting or draining."""


class Unreachable(UnavailableError):
    """No reply came: the connection was refused, reset or timed out. Raised by the client only."""

    type = "unreachable"


class SketchError(GradAlignError):
    """A sketch cannot be made of this model or these gradients."""


class DirectionError(GradAlignError):
    """A product along the validation gradient cannot be taken, or cannot be trusted; the weights are as they were."""


def _tree(base: type[WireError]) -> list[type[WireError]]:
    return [base, *(leaf for child in base.__subclasses__() for leaf in _tree(child))]


_BY_TYPE = {error.type: error for error in _tree(WireError)}
_BY_STATUS = {error.status: error for error in reversed(_tree(WireError))}


def error_from_wire(status: int, body: object, *, retry_after: float | None = None) -> WireError:
    """The error that a reply stands for.

    Args:
        status: the HTTP status, 400 or above.
        body: the decoded body; anything that is not an error body (a proxy's page, say) is quoted in the message.
        retry_after: the Retry-After header in seconds, if there was one.
    """
    fields = body.get("error") if isinstance(body, Mapping) else None
    if not isinstance(fields, Mapping):
        fields = {"message": f"HTTP {status} without an error body of ours: {str(body)[:200]!r}"}
    named = _BY_TYPE.get(str(fields.get("type")))
    if named is None:
        fallback = RequestError if status < 500 else Unavailable
        named = _BY_STATUS.get(status, fallback)
    error = named(str(fields.get("message", "")), param=fields.get("param"), request_id=fields.get("request_id"))
    if isinstance(error, UnavailableError):
        error.retry_after = retry_after
    return error

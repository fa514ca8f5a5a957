"""GradAlign: gradient-alignment curriculum for LLM reinforcement learning, after arXiv 2602.21492.

This package is the contract that trainers and the scorer share, and the client. It needs numpy, httpx and msgpack;
`gradalign.sketch` also needs torch (`pip install 'gradalign[sketch]'`).
"""

from gradalign.client.client import AsyncClient, Client
from gradalign.errors import (
    Conflict,
    FeaturesMismatch,
    Fenced,
    Forbidden,
    GradAlignError,
    InvalidValue,
    KindMismatch,
    MalformedRequest,
    MethodNotAllowed,
    NotFound,
    Overloaded,
    PayloadTooLarge,
    ProjectionMismatch,
    RequestError,
    RequestIdReused,
    SketchError,
    StalePolicy,
    Unauthorized,
    Unavailable,
    UnavailableError,
    Unreachable,
    UnsupportedMediaType,
    ValidationMismatch,
    ValidationMissing,
    WireError,
)
from gradalign.wire.matrix import SketchMatrix
from gradalign.wire.messages import RefreshRequest, ScoreRequest, SelectRequest
from gradalign.wire.projection import Projection, parameters_digest
from gradalign.wire.replies import (
    ProblemPage,
    ProblemState,
    Ranking,
    RankingOutline,
    RefreshReply,
    RejectedProblem,
    RoundRecord,
    RunState,
    RunWarning,
    Selection,
)

__version__ = "0.1.0"

__all__ = [
    "AsyncClient",
    "Client",
    "Conflict",
    "FeaturesMismatch",
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
    "ProblemPage",
    "ProblemState",
    "Projection",
    "ProjectionMismatch",
    "Ranking",
    "RankingOutline",
    "RefreshReply",
    "RefreshRequest",
    "RejectedProblem",
    "RequestError",
    "RequestIdReused",
    "RoundRecord",
    "RunState",
    "RunWarning",
    "ScoreRequest",
    "SelectRequest",
    "Selection",
    "SketchError",
    "SketchMatrix",
    "StalePolicy",
    "Unauthorized",
    "Unavailable",
    "UnavailableError",
    "Unreachable",
    "UnsupportedMediaType",
    "ValidationMismatch",
    "ValidationMissing",
    "WireError",
    "__version__",
    "parameters_digest",
]

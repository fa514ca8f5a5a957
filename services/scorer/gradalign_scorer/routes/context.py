"""What the routes share: one object, made when the app starts, found on `app.state`."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from starlette.requests import Request

from gradalign_scorer.access.keyring import KeyRing
from gradalign_scorer.http.admission import Admission
from gradalign_scorer.http.bodies import BodyReader
from gradalign_scorer.service.engine import Engine
from gradalign_scorer.service.events import Streams
from gradalign_scorer.service.requests import Service
from gradalign_scorer.settings import Settings
from gradalign_scorer.store import RunStore
from gradalign_scorer.telemetry.metrics import Metrics
from gradalign_scorer.telemetry.run_metrics import RunFigures

if TYPE_CHECKING:
    from gradalign_scorer.telemetry.tracing import Tracing

__all__ = ["Context", "context_of"]


@dataclass
class Context:
    """The parts of a running scorer.

    Attributes:
        settings: as configured.
        store: of all runs.
        engine: that computes.
        admission: of requests with a body.
        bodies: reads them.
        service: the requests that change a run.
        metrics: of this process.
        run_figures: metrics of single runs.
        keys: that are accepted.
        streams: of pages that watch runs.
        tracing: of requests, where it is on.
        started_at: on the monotonic clock, which never jumps.
        warm: whether the first computation is done.
        draining: whether the process was told to end.
        ends_at: when the grace ends, on the monotonic clock; None before the end has begun.
    """

    settings: Settings
    store: RunStore
    engine: Engine
    admission: Admission
    bodies: BodyReader
    service: Service
    metrics: Metrics
    run_figures: RunFigures
    keys: KeyRing
    streams: Streams
    tracing: Tracing | None = None
    started_at: float = field(default_factory=time.monotonic)
    warm: bool = False
    draining: bool = False
    ends_at: float | None = None


def context_of(request: Request) -> Context:
    """The context of the app that serves a request."""
    return cast(Context, request.app.state.context)

"""One line in the log for each request: what was asked, of which run, how it ended, and where its time went."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gradalign import InvalidValue
from gradalign.wire.checks import check_name

__all__ = ["QUIET", "RequestLog", "RequestNotes", "note", "note_stage", "notes_of", "stage"]

_LOG = logging.getLogger(__name__)
_CURRENT: ContextVar[RequestNotes | None] = ContextVar("gradalign_request", default=None)
# Asked every few seconds by machines; a line for each would bury the others.
QUIET = frozenset({"/livez", "/readyz", "/health", "/metrics"})
_NOTES = "gradalign.notes"


@dataclass
class RequestNotes:
    """What is known of the request in work. Names and counts only: values of a request stay out of the log.

    Attributes:
        request_id: the message's own, else of the header X-Request-Id, else a fresh one.
        run: its run; None where it names none, or none that is valid.
        rows: problems in its body.
        error: type of the error it was answered with.
        stages: seconds of its parts.
        intervals: parts that ran in one piece, in the order in which they ended: name, begin and end by
            `time.perf_counter`.
    """

    request_id: str
    run: str | None = None
    rows: int | None = None
    error: str | None = None
    stages: dict[str, float] = field(default_factory=dict)
    intervals: list[tuple[str, float, float]] = field(default_factory=list)


def note(
    *, run: str | None = None, rows: int | None = None, request_id: str | None = None, error: str | None = None
) -> None:
    """Add to the notes on the request in work; None leaves what is there."""
    notes = _CURRENT.get()
    if notes is not None:
        notes.run, notes.rows = run or notes.run, notes.rows if rows is None else rows
        notes.request_id, notes.error = request_id or notes.request_id, error or notes.error


def note_stage(name: str, seconds: float, interval: tuple[float, float] | None = None) -> None:
    """Add the time that a part of the request in work took, and where it ran in one piece, its begin and end."""
    notes = _CURRENT.get()
    if notes is not None:
        notes.stages[name] = notes.stages.get(name, 0.0) + seconds
        if interval is not None:
            notes.intervals.append((name, *interval))


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Time a part of the request in work."""
    began = time.perf_counter()
    try:
        yield
    finally:
        ended = time.perf_counter()
        note_stage(name, ended - began, (began, ended))


def notes_of(scope: Scope) -> RequestNotes | None:
    """The notes on a request that passed `RequestLog`."""
    notes: RequestNotes | None = scope.get(_NOTES)
    return notes


class RequestLog:
    """ASGI middleware that logs every request once it is answered, and names it in the reply's X-Request-Id.

    Args:
        app: what stands behind it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and log its end."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        notes = scope[_NOTES] = RequestNotes(_given_id(scope))
        token = _CURRENT.set(notes)
        status, started = 500, time.perf_counter()

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = notes.request_id
            await send(message)

        try:
            await self._app(scope, receive, named)
        finally:
            _CURRENT.reset(token)
            _write(scope, notes, status, time.perf_counter() - started)


def _given_id(scope: Scope) -> str:
    try:
        return check_name("X-Request-Id", Headers(scope=scope).get("X-Request-Id"))
    except InvalidValue:
        return uuid.uuid4().hex


def _write(scope: Scope, notes: RequestNotes, status: int, seconds: float) -> None:
    # The template, not the path: a path may hold anything, line breaks too.
    route = getattr(scope.get("route"), "path", "none")
    level = logging.WARNING if status >= 500 else logging.DEBUG if route in QUIET else logging.INFO
    if not _LOG.isEnabledFor(level):
        return
    fields = {
        "request_id": notes.request_id,
        "method": scope["method"],
        "route": route,
        "status": status,
        "run": notes.run,
        "rows": notes.rows,
        "seconds": round(seconds, 6),
        "stages": {name: round(value, 6) for name, value in notes.stages.items()},
        "error": notes.error,
    }
    shown = " ".join(f"{name}={value}" for name, value in fields.items() if value not in (None, {}))
    _LOG.log(level, "%s", shown, extra={"fields": fields})

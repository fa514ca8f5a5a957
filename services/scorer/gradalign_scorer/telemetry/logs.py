"""The log on standard error: plain for people, or one JSON object a line for machines.

Neither ever holds a body, a sketch or a key: nothing that logs is given one.
"""

from __future__ import annotations

import json
import logging
from contextvars import ContextVar
from datetime import UTC, datetime

__all__ = ["TRACE_ID", "JsonFormatter", "PlainFormatter", "configure_logging"]

_PLAIN = "%(asctime)s %(levelname)s %(name)s: %(message)s"
TRACE_ID: ContextVar[str | None] = ContextVar("gradalign_trace_id", default=None)
"""Of the trace that the work in hand belongs to, in hex; every line written meanwhile names it."""


class PlainFormatter(logging.Formatter):
    """One line for people, with the trace at its end where there is one."""

    def __init__(self) -> None:
        super().__init__(_PLAIN)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """The line, before a traceback."""
        trace_id = TRACE_ID.get()
        return super().formatMessage(record) + (f" trace_id={trace_id}" if trace_id else "")


class JsonFormatter(logging.Formatter):
    """`time`, `level`, `logger`, `message`, the fields of the record, and `trace_id` and `exception` where there are any."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if trace_id := TRACE_ID.get():
            line["trace_id"] = trace_id
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure_logging(level: str, form: str) -> None:
    """Send everything from a level up to standard error.

    Args:
        level: `debug`, `info`, `warning` or `error`.
        form: `plain` or `json`.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else PlainFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)

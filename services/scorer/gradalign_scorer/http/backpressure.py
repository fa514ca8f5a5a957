"""Replies that clients are slow to take: given time while they take some, given up once they take none.

uvicorn waits for such a client for ever, and its reply stays in memory. Here a client that takes nothing of a reply for a
while loses its connection, and so do those that have waited longest once all replies together hold too much memory. What
was stored stays stored: a request sent again under its id gets its reply.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import struct
import termios
from collections import deque
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

__all__ = ["Deliveries", "DeliveringProtocol"]

_LOG = logging.getLogger(__name__)
_FAREWELL_SECONDS = 1.0


class Deliveries:
    """The connections of one server that hold more of a reply than their client takes at once.

    Args:
        seconds: longest wait for a client to take more.
        max_bytes: that all of them may hold; the latest one may hold more alone.
    """

    def __init__(self, seconds: float, max_bytes: int) -> None:
        self.seconds = seconds
        self._max_bytes = max_bytes
        self._late: dict[DeliveringProtocol, None] = {}

    def begin(self, connection: DeliveringProtocol) -> None:
        """Note a connection; the ones that wait longest make room for it."""
        self._late[connection] = None
        held = sum(late.held_bytes for late in self._late)
        for late in list(self._late):
            if held <= self._max_bytes or late is connection:
                return
            held -= late.held_bytes
            late.abandon("others need the memory")

    def end(self, connection: DeliveringProtocol) -> None:
        """Forget a connection."""
        self._late.pop(connection, None)


class DeliveringProtocol(HttpToolsProtocol):
    """One connection, which is closed where its client does not take its reply.

    Args:
        deliveries: shared by the server's connections.
        settings: of uvicorn.
    """

    def __init__(self, *, deliveries: Deliveries, **settings: Any) -> None:
        super().__init__(**settings)
        self._deliveries = deliveries
        self._left = 0
        self._taken = False
        self._unanswered: deque[RequestResponseCycle] = deque()
        self._check: asyncio.TimerHandle | None = None

    @property
    def held_bytes(self) -> int:
        """Bytes of replies in this process's memory."""
        return self.transport.get_write_buffer_size()

    def pause_writing(self) -> None:
        """Much of a reply is not taken yet."""
        super().pause_writing()
        self._watch()

    def on_response_complete(self) -> None:
        """A reply is written, perhaps into memory only."""
        super().on_response_complete()
        while self._unanswered and self._unanswered[0].response_complete:
            self._unanswered.popleft()
        if self.transport.is_closing():
            self._part()
        if self.held_bytes:
            self._watch()
            self._left = max(self._left, self._left_bytes())  # what was added is not what was left before

    def resume_writing(self) -> None:
        """Much of what was held was taken."""
        super().resume_writing()
        self._taken = True

    def on_headers_complete(self) -> None:
        """A request begins."""
        super().on_headers_complete()
        self._unanswered.append(self.cycle)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop watching, and let no request write any more: uvicorn tells the last one only, and others may be before it."""
        self._end()
        for cycle in self._unanswered:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """The server ends: an idle connection does too."""
        super().shutdown()
        if self.transport.is_closing():
            self._part()

    def _part(self) -> None:
        """Wait only a moment for a TLS client to say goodbye: idle ones do not look, and would hold up the server's end."""
        if self.scheme == "https":
            self.loop.call_later(_FAREWELL_SECONDS, self._cut)

    def _cut(self) -> None:
        if self not in self.connections:
            return
        if self.held_bytes:
            self._part()
        else:
            self.transport.abort()

    def abandon(self, why: str) -> None:
        """Close the connection, and drop what its client did not take."""
        _LOG.warning("closed a connection whose client left %d bytes of its reply: %s", self._left_bytes(), why)
        self._end()
        self.transport.abort()

    def _watch(self) -> None:
        if self._check is None:
            self._left, self._taken = self._left_bytes(), False
            self._check = self.loop.call_later(self._deliveries.seconds, self._look)
            self._deliveries.begin(self)

    def _look(self) -> None:
        before, self._left = self._left, self._left_bytes()
        taken, self._taken = self._taken or self._left < before, False
        if not self.held_bytes:
            self._end()
        elif taken:
            self._check = self.loop.call_later(self._deliveries.seconds, self._look)
        else:
            self.abandon(f"it took none for {self._deliveries.seconds:g} s")

    def _end(self) -> None:
        if self._check is not None:
            self._check.cancel()
            self._check = None
        self._deliveries.end(self)

    def _left_bytes(self) -> int:
        """Bytes that the client has not taken, with those in the kernel's queue, which moves in smaller steps than ours."""
        sock = self.transport.get_extra_info("socket")
        try:
            queued = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0" * 4) if sock else b"\0" * 4
        except (OSError, ValueError):  # closed meanwhile
            return self.held_bytes
        return self.held_bytes + int(struct.unpack("i", queued)[0])

"""Request bodies read by the kernel straight into the app's buffer.

uvicorn hands a body on in pieces, each copied four times on its way, which halves the rate of large requests. Here,
once an app asks for the rest of a body of stated length, the connection's protocol is swapped for one that gives the
kernel the app's own buffer, until the last byte; then uvicorn's protocol goes on with the next request. Without TLS and
with Content-Length only; the app reads in pieces where `direct_body(scope)` is None.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from typing import Any, Protocol

import httptools
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from gradalign_scorer.http.protocol import BoundedProtocol

__all__ = ["DirectBodyProtocol", "Fill", "direct_body"]

_EXTENSION = "gradalign.direct_body"


class Fill(Protocol):
    """Reads a whole body."""

    def __call__(self, buffer: memoryview, stalled_seconds: float, arrived: Callable[[int], None]) -> Awaitable[bool]:
        """Fill the buffer, whose length is the Content-Length; False where the body was lost on the way.

        Args:
            buffer: writable.
            stalled_seconds: longest wait for more.
            arrived: told how many bytes are there, now and then.

        Raises:
            TimeoutError: nothing came for that long.
        """


def direct_body(scope: MutableMapping[str, Any]) -> Fill | None:
    """How to read this request's body straight into a buffer; None where the server cannot."""
    fill: Fill | None = (scope.get("extensions") or {}).get(_EXTENSION)
    return fill


class DirectBodyProtocol(BoundedProtocol):
    """uvicorn's protocol over httptools, which offers `direct_body` to the app."""

    def on_headers_complete(self) -> None:
        """Offer the extension with a request that can use it."""
        super().on_headers_complete()
        names = {name for name, _ in self.headers}
        if self.scheme == "http" and b"content-length" in names and b"transfer-encoding" not in names:
            cycle = self.cycle
            extensions: Any = self.scope.setdefault("extensions", {})
            extensions[_EXTENSION] = partial(_fill, self, cycle)

    def take_back(self, cycle: RequestResponseCycle, *, complete: bool) -> None:
        """Go on with this protocol behind a body that was read past its parser."""
        if self.transport.is_closing():
            return
        self.transport.pause_reading()
        self.transport.set_protocol(self)
        if complete:
            # The old parser still waits for the body's bytes.
            self.parser = httptools.HttpRequestParser(self)
            cycle.more_body = False
            self.flow.read_paused = False
            self.transport.resume_reading()
        else:
            # What is left of the body cannot be told from a next request: none may follow on this connection.
            cycle.keep_alive = False
            self.flow.read_paused = True


async def _fill(
    protocol: DirectBodyProtocol,
    cycle: RequestResponseCycle,
    buffer: memoryview,
    stalled_seconds: float,
    arrived: Callable[[int], None],
) -> bool:
    if cycle.waiting_for_100_continue and not cycle.transport.is_closing():
        cycle.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        cycle.waiting_for_100_continue = False
    filled = len(cycle.body)
    buffer[:filled] = cycle.body
    cycle.body = bytearray()
    arrived(filled)
    if not cycle.more_body or cycle.disconnected or protocol.cycle is not cycle:
        return not cycle.more_body and filled == len(buffer)
    receiver = _Receiver(protocol, buffer, filled, arrived)
    protocol.transport.pause_reading()
    protocol.transport.set_protocol(receiver)
    protocol.transport.resume_reading()
    try:
        await receiver.wait(stalled_seconds)
    finally:
        protocol.take_back(cycle, complete=receiver.filled == len(buffer))
    return receiver.filled == len(buffer)


class _Receiver(asyncio.BufferedProtocol):
    """Takes the connection's bytes into a buffer until it is full; never more, so a next request stays in the socket."""

    def __init__(
        self, protocol: DirectBodyProtocol, buffer: memoryview, filled: int, arrived: Callable[[int], None]
    ) -> None:
        self.filled = filled
        self._arrived = arrived
        self._protocol = protocol
        self._buffer = buffer
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def wait(self, stalled_seconds: float) -> None:
        """Return when the buffer is full or the connection lost."""
        before = -1
        while before != self.filled:
            before = self.filled
            done, _ = await asyncio.wait([self._over], timeout=stalled_seconds)
            if done:
                return
        raise TimeoutError

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        return self._buffer[self.filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self.filled += nbytes
        self._arrived(self.filled)
        if self.filled == len(self._buffer):
            # Another byte would belong to the next request.
            self._protocol.transport.pause_reading()
            self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocol.connection_lost(exc)
        self._end()

    def eof_received(self) -> None:
        self._protocol.eof_received()

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    def _end(self) -> None:
        if not self._over.done():
            self._over.set_result(None)

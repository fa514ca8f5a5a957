"""One HTTP connection, within limits on what comes before a body: uvicorn and its parser have none."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from gradalign import MalformedRequest, PayloadTooLarge, WireError
from gradalign.wire.codec import JSON, encode_value
from gradalign_scorer.http.backpressure import DeliveringProtocol

__all__ = ["MAX_HEAD_BYTES", "BoundedProtocol"]

MAX_HEAD_BYTES = 64 << 10
_AROUND_HEADER = 4  # a colon, a space and a line's end


class BoundedProtocol(DeliveringProtocol):
    """Closes a connection whose request line and headers grow too large, or do not come; the connection itself included.

    Args:
        head_seconds: longest wait for a head, from the connection's first moment or a request's first byte.
        settings: of `DeliveringProtocol`.
    """

    def __init__(self, *, head_seconds: float, **settings: Any) -> None:
        super().__init__(**settings)
        self._head_seconds = head_seconds
        self._counted = 0
        self._silent = 0
        self._patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse; bytes of which the parser tells nothing are those of a header that does not end, and pile up in it."""
        self._silent += len(data)
        super().data_received(data)
        if self._silent > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(_too_large())

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._counted = self._silent = 0
        if self._patience is None:
            self._await_head()

    def on_url(self, url: bytes) -> None:
        """Count (a part of) the path."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header, or a trailer behind a chunked body."""
        self._count(len(name) + len(value) + _AROUND_HEADER)
        super().on_header(name, value)

    def _count(self, length: int) -> None:
        self._silent = 0
        self._counted += length
        if self._counted > MAX_HEAD_BYTES:
            raise ValueError("the head is too large")  # stops the parser, which then asks for send_400_response

    def on_headers_complete(self) -> None:
        """A head has ended."""
        self._silent = 0
        self._stop_waiting()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Part of a body."""
        self._silent = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request has ended."""
        self._silent = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What the parser cannot read is answered in the wire's shape too."""
        if self._counted > MAX_HEAD_BYTES:
            self._refuse(_too_large())
            return
        self._refuse(MalformedRequest(f"the bytes are not an HTTP/1.1 request ({msg.rstrip('.')}); send one."))

    def _await_head(self) -> None:
        self._patience = self.loop.call_later(self._head_seconds, self._give_up)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _give_up(self) -> None:
        self._patience = None
        self._refuse(
            MalformedRequest(
                f"no whole request line and headers came within {self._head_seconds:g} s; send them at once."
            )
        )

    def _refuse(self, error: WireError) -> None:
        # Bytes behind a reply that is still being sent would read as part of it.
        if self.cycle is None or self.cycle.response_complete:
            body = encode_value(error.to_wire(), JSON)
            head = f"content-type: {JSON}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
            self.transport.write(STATUS_LINE[error.status] + head.encode() + body)
        self.transport.close()


def _too_large() -> PayloadTooLarge:
    return PayloadTooLarge(
        f"the request line and headers are longer than {MAX_HEAD_BYTES} bytes; send less there. Problems and sketches "
        "belong in the body."
    )

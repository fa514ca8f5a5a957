"""Reading a request's body: checked by its headers first, admitted, then read into one buffer, and of use while it comes."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import numpy as np
from starlette.requests import Request

from gradalign import MalformedRequest, PayloadTooLarge, UnsupportedMediaType, WireError
from gradalign.wire.codec import JSON, MSGPACK, media_type
from gradalign_scorer.http.admission import Admission, Place
from gradalign_scorer.http.buffers import BufferPool
from gradalign_scorer.http.directbody import direct_body
from gradalign_scorer.http.negotiation import mark_body_read
from gradalign_scorer.http.requestlog import note_stage
from gradalign_scorer.settings import Settings

__all__ = ["Body", "BodyReader"]

_DIGESTED_WHOLE = 1 << 18
_PIECE = 8 << 10
# What a body takes once it is Python objects, in bytes per byte: a float in a list takes 32 for the four of `0.1,`.
_PARSED_COST = 16


class Body:
    """A body, of which the first `arrived` bytes are there.

    Attributes:
        content_type: `application/msgpack` or `application/json`.
        data: all of it, also what is still to come; writable, so that tensors may view it.
        arrived: bytes that are there.
        waited: seconds that somebody waited for more of it.
    """

    def __init__(self, content_type: str, data: memoryview, *, arrived: int | None = None) -> None:
        self.content_type = content_type
        self.data = data
        self.arrived = len(data) if arrived is None else arrived
        self.waited = 0.0
        self._summed = _DIGESTED_WHOLE
        self._sums: list[bytes] = []
        self._more = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None

    def begin(self, reading: asyncio.Task[None]) -> None:
        """Name the task that brings the rest."""
        self._reading = reading
        reading.add_done_callback(lambda _: self._more.set())

    def take(self, arrived: int) -> None:
        """Note that so many bytes are there."""
        self.arrived = arrived
        self._more.set()

    async def until(self, count: int) -> None:
        """Return once the first `count` bytes are there; raises what ended the reading before that."""
        with self._waiting():
            while self.arrived < min(count, len(self.data)):
                if self._reading is not None and self._reading.done():
                    self._reading.result()
                self._more.clear()
                await self._more.wait()

    async def whole(self) -> None:
        """Return once all of it is there; raises what ended the reading before that."""
        await self.until(len(self.data))
        if self._reading is not None:
            with self._waiting():
                await self._reading

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.waited += time.perf_counter() - began

    def digest(self) -> bytes:
        """Tells this body from another under the same request id: a guard against mistakes, not against forgery.

        A cryptographic hash of 64 MiB takes longer than scoring them, so the bulk goes in as sums of 8 KiB pieces.
        """
        self.sum_until(len(self.data))
        head = hashlib.blake2b(self.data[:_DIGESTED_WHOLE], digest_size=16)
        head.update(len(self.data).to_bytes(8, "little"))
        for sums in self._sums:
            head.update(sums)
        head.update(self.data[self._summed :])
        return head.digest()

    def sum_until(self, count: int) -> None:
        """Take the digest's sums of the first `count` bytes, which must be there; one thread at a time."""
        pieces = max(0, count - self._summed) // _PIECE
        if pieces:
            stop = self._summed + pieces * _PIECE
            words = np.frombuffer(self.data[self._summed : stop], np.uint64)
            self._sums.append(words.reshape(pieces, -1).sum(axis=1).tobytes())
            self._summed = stop


class BodyReader:
    """Reads bodies within the limits.

    Args:
        settings: for the limits.
        admission: shared by all routes that take a body.
        pool: of buffers.
    """

    def __init__(self, settings: Settings, admission: Admission, pool: BufferPool) -> None:
        self._most = settings.max_body_bytes
        self._most_parsed = min(settings.max_json_bytes, settings.max_body_bytes)
        self._seconds = settings.body_seconds
        self._admission = admission
        self._pool = pool

    @asynccontextmanager
    async def read(self, request: Request, *, parsed: bool = False) -> AsyncIterator[Body]:
        """The body, as soon as it is admitted; its memory must not be looked at any more when the context has ended.

        Args:
            request: to read from.
            parsed: whether all of it becomes Python objects, as JSON always does; the limit of JSON holds then.

        Raises:
            UnsupportedMediaType, PayloadTooLarge, Overloaded: before any of the body is read.
            MalformedRequest: it did not come whole.
        """
        async with self._admitted(request, parsed) as body:
            try:
                yield body
            finally:
                note_stage("receive", body.waited)

    @asynccontextmanager
    async def _admitted(self, request: Request, parsed: bool) -> AsyncIterator[Body]:
        kind = _kind(request)
        _check_coding(request)
        bulk = kind == MSGPACK and not parsed
        declared = _declared_length(request)
        if declared is not None and declared > self._limit(bulk):
            raise self._too_large(kind, bulk, f"{declared} bytes long")
        with self._admission.admit() as place:
            if declared is None:
                began = time.perf_counter()
                body = Body(kind, memoryview(await self._chunked(request, place, kind, bulk)))
                body.waited = time.perf_counter() - began
                mark_body_read(request.scope)
                yield body
                return
            place.claim(declared, 1 if bulk else _PARSED_COST)
            buffer = self._pool.take(declared)
            body = Body(kind, buffer.view, arrived=0)
            async with self._arriving(request, body):
                yield body
            # Only here: after a cancellation, say, the compute thread may still be reading.
            self._pool.give(buffer)

    def _limit(self, bulk: bool) -> int:
        return self._most if bulk else self._most_parsed

    @asynccontextmanager
    async def _arriving(self, request: Request, body: Body) -> AsyncIterator[None]:
        reading = asyncio.create_task(self._stated(request, body))
        body.begin(reading)
        try:
            yield
        except WireError:
            # Refused while it still comes: a client that is sending would not see the answer.
            with suppress(WireError):
                await reading
            raise
        finally:
            if not reading.done():
                reading.cancel()
                with suppress(asyncio.CancelledError, WireError):
                    await reading
            elif not reading.cancelled():
                reading.exception()

    async def _stated(self, request: Request, body: Body) -> None:
        fill = direct_body(request.scope)
        if fill is not None:
            try:
                whole = await fill(body.data, self._seconds, body.take)
            except TimeoutError:
                raise self._stalled() from None
            if not whole:
                raise MalformedRequest("the connection was closed before the whole body came.")
        else:
            await self._in_pieces(request, body)
        mark_body_read(request.scope)

    async def _in_pieces(self, request: Request, body: Body) -> None:
        length, filled = len(body.data), 0
        async for chunk in self._chunks(request):
            if filled + len(chunk) <= length:
                body.data[filled : filled + len(chunk)] = chunk
            filled += len(chunk)
            body.take(min(filled, length))
        if filled != length:
            raise MalformedRequest(f"Content-Length is {length} and {filled} bytes came; send all of them.")

    async def _chunked(self, request: Request, place: Place, kind: str, bulk: bool) -> bytearray:
        data = bytearray()
        async for chunk in self._chunks(request):
            if len(data) + len(chunk) > self._limit(bulk):
                raise self._too_large(kind, bulk, "longer than that")
            place.claim(len(chunk), 1 if bulk else _PARSED_COST)
            data += chunk
        return data

    async def _chunks(self, request: Request) -> AsyncIterator[bytes]:
        stream = request.stream()
        while True:
            try:
                async with asyncio.timeout(self._seconds):
                    chunk = await anext(stream, None)
            except TimeoutError:
                raise self._stalled() from None
            if chunk is None:
                return
            yield chunk

    def _stalled(self) -> MalformedRequest:
        return MalformedRequest(f"no more of the body came for {self._seconds:g} s; send it whole and without pauses.")

    def _too_large(self, kind: str, bulk: bool, fault: str) -> PayloadTooLarge:
        limit = self._limit(bulk)
        name = "MAX_BODY_BYTES" if bulk else "MAX_JSON_BYTES"
        advice = f"send {MSGPACK}, " if kind == JSON else ""
        return PayloadTooLarge(
            f"the body is {fault}; expected at most {limit} bytes of {kind}. Split the problems over several requests, "
            f"{advice}send float16 or int8 instead of float32, or raise GRADALIGN_{name}.",
            param="Content-Length",
        )


def _kind(request: Request) -> str:
    given = request.headers.get("Content-Type", "")
    kind = media_type(given)
    if kind not in (MSGPACK, JSON):
        raise UnsupportedMediaType(
            f"Content-Type is {given[:80]!r}; expected {MSGPACK} or {JSON}.", param="Content-Type"
        )
    return kind


def _check_coding(request: Request) -> None:
    given = ", ".join(request.headers.getlist("Content-Encoding"))
    if not {part.strip().lower() for part in given.split(",")} <= {"", "identity"}:
        raise UnsupportedMediaType(
            f"Content-Encoding is {given[:80]!r}; expected the body as it is. Send it uncompressed and without that header: "
            "float16 and int8 sketches save more, and at once.",
            param="Content-Encoding",
        )


def _declared_length(request: Request) -> int | None:
    text = request.headers.get("Content-Length")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()):
        raise MalformedRequest(f"Content-Length is {text[:40]!r}; expected a number of bytes.", param="Content-Length")
    return int(text)

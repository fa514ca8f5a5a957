"""Reading a request's body: checked by its headers first, admitted, then read into one buffer."""

from __future__ import annotations

import asyncio
import hashlib
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.requests import Request

from gradalign import MalformedRequest, PayloadTooLarge, UnsupportedMediaType
from gradalign.codec import JSON, MSGPACK, media_type
from gradalign_scorer.admission import Admission, Place
from gradalign_scorer.negotiation import mark_body_read
from gradalign_scorer.settings import Settings

__all__ = ["Body", "BodyReader"]

_DIGESTED_WHOLE = 1 << 20
# What a body takes once it is Python objects, in bytes per byte: a float in a list takes 32 for the four of `0.1,`.
_PARSED_COST = 16


@dataclass(frozen=True)
class Body:
    """A body that was read whole.

    Attributes:
        content_type: `application/msgpack` or `application/json`.
        data: writable, so that tensors may view it.
    """

    content_type: str
    data: memoryview

    def digest(self) -> bytes:
        """Tells this body from another under the same request id: a guard against mistakes, not against forgery.

        A cryptographic hash of 64 MiB takes longer than scoring them, so the bulk goes into a CRC.
        """
        head = hashlib.blake2b(self.data[:_DIGESTED_WHOLE], digest_size=16)
        head.update(len(self.data).to_bytes(8, "little"))
        head.update(zlib.crc32(self.data).to_bytes(4, "little"))
        return head.digest()


class BodyReader:
    """Reads bodies within the limits.

    Args:
        settings: for the limits.
        admission: shared by all routes that take a body.
    """

    def __init__(self, settings: Settings, admission: Admission) -> None:
        self._most = settings.max_body_bytes
        self._most_parsed = min(settings.max_json_bytes, settings.max_body_bytes)
        self._seconds = settings.body_seconds
        self._admission = admission

    @asynccontextmanager
    async def read(self, request: Request, *, parsed: bool = False) -> AsyncIterator[Body]:
        """The body; the memory it claims is free again when the context ends.

        Args:
            request: to read from.
            parsed: whether all of it becomes Python objects, as JSON always does; the limit of JSON holds then.

        Raises:
            UnsupportedMediaType, PayloadTooLarge, Overloaded: before any of the body is read.
            MalformedRequest: it did not come whole.
        """
        kind = _kind(request)
        bulk = kind == MSGPACK and not parsed
        declared = _declared_length(request)
        if declared is not None and declared > self._limit(bulk):
            raise self._too_large(kind, bulk, f"{declared} bytes long")
        with self._admission.admit() as place:
            data = await (
                self._stated(request, place, declared, bulk)
                if declared is not None
                else self._chunked(request, place, kind, bulk)
            )
            mark_body_read(request.scope)
            yield Body(kind, memoryview(data))

    def _limit(self, bulk: bool) -> int:
        return self._most if bulk else self._most_parsed

    async def _stated(self, request: Request, place: Place, length: int, bulk: bool) -> bytearray:
        place.claim(length, 1 if bulk else _PARSED_COST)
        data = bytearray(length)
        filled = 0
        async for chunk in self._chunks(request):
            data[filled : filled + len(chunk)] = chunk
            filled += len(chunk)
        if filled != length:
            raise MalformedRequest(f"Content-Length is {length} and {filled} bytes came; send all of them.")
        return data

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
                raise MalformedRequest(
                    f"no more of the body came for {self._seconds:g} s; send it whole and without pauses."
                ) from None
            if chunk is None:
                return
            yield chunk

    def _too_large(self, kind: str, bulk: bool, fault: str) -> PayloadTooLarge:
        limit = self._limit(bulk)
        name = "MAX_BODY_BYTES" if bulk else "MAX_JSON_BYTES"
        advice = f"send {MSGPACK}, " if kind == JSON else ""
        return PayloadTooLarge(
            f"the body is {fault}; expected at most {limit} bytes of {kind}. Split the problems over several requests, "
            f"{advice}send float16 instead of float32, or raise GRADALIGN_{name}.",
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


def _declared_length(request: Request) -> int | None:
    text = request.headers.get("Content-Length")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()):
        raise MalformedRequest(f"Content-Length is {text[:40]!r}; expected a number of bytes.", param="Content-Length")
    return int(text)

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
        self._limits = {MSGPACK: settings.max_body_bytes, JSON: min(settings.max_json_bytes, settings.max_body_bytes)}
        self._seconds = settings.body_seconds
        self._admission = admission

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[Body]:
        """The body; the memory it claims is free again when the context ends.

        Raises:
            UnsupportedMediaType, PayloadTooLarge, Overloaded: before any of the body is read.
            MalformedRequest: it did not come whole.
        """
        kind = _kind(request)
        declared = _declared_length(request)
        if declared is not None and declared > self._limits[kind]:
            raise self._too_large(kind, f"{declared} bytes long")
        with self._admission.admit() as place:
            data = await (
                self._stated(request, place, declared) if declared is not None else self._chunked(request, place, kind)
            )
            mark_body_read(request.scope)
            yield Body(kind, memoryview(data))

    async def _stated(self, request: Request, place: Place, length: int) -> bytearray:
        place.claim(length)
        data = bytearray(length)
        filled = 0
        async for chunk in self._chunks(request):
            data[filled : filled + len(chunk)] = chunk
            filled += len(chunk)
        if filled != length:
            raise MalformedRequest(f"Content-Length is {length} and {filled} bytes came; send all of them.")
        return data

    async def _chunked(self, request: Request, place: Place, kind: str) -> bytearray:
        data = bytearray()
        async for chunk in self._chunks(request):
            if len(data) + len(chunk) > self._limits[kind]:
                raise self._too_large(kind, "longer than that")
            place.claim(len(chunk))
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

    def _too_large(self, kind: str, fault: str) -> PayloadTooLarge:
        limit = self._limits[kind]
        name = "MAX_JSON_BYTES" if kind == JSON else "MAX_BODY_BYTES"
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

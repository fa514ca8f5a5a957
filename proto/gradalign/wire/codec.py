"""The bytes of the wire: a request with sketches or products as msgpack, everything else as msgpack or JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

import msgpack

from gradalign.errors import InvalidValue, MalformedRequest, UnsupportedMediaType
from gradalign.wire.messages import MAX_PROBLEMS, RefreshRequest, ScoreRequest
from gradalign.wire.rows import without_bin

__all__ = [
    "JSON",
    "MAX_HEADER_BYTES",
    "MSGPACK",
    "decode_arriving",
    "decode_json",
    "decode_request",
    "decode_value",
    "encode_request",
    "encode_value",
    "split_body",
]

JSON = "application/json"
MSGPACK = "application/msgpack"
MAX_HEADER_BYTES = 16 << 20
_FIRST_FEED = 64 << 10
# msgpack allocates a list of the declared length before it reads one element: nested declarations must stay small.
_LIMITS = {"max_array_len": 2 * MAX_PROBLEMS, "max_map_len": 64, "max_ext_len": 0}
_BIN_LENGTH_BYTES = {0xC4: 1, 0xC5: 2, 0xC6: 4}
_LONGEST_BIN_PREFIX = 5
# What compressed bytes begin with; no JSON and no msgpack map begins so.
_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"(\xb5/\xfd": "zstd",
    **dict.fromkeys((b"x\x01", b"x\x5e", b"x\x9c", b"x\xda"), "deflate (zlib)"),
    b"\x04\x22\x4d\x18": "lz4",
    b"\xfd7zXZ\x00": "xz",
    b"BZh": "bzip2",
}
_LONGEST_MAGIC = max(map(len, _MAGIC))

Sketched = TypeVar("Sketched", ScoreRequest, RefreshRequest)


def encode_request(request: ScoreRequest | RefreshRequest) -> list[bytes | memoryview]:
    """The body of a request as consecutive parts: header and bin prefix in one, then the sketches, not copied.

    A request without sketches is its header alone.
    """
    if request.sketches is None:
        return [msgpack.packb(request.header())]
    data = request.sketches.data
    if data.nbytes >= 1 << 32:
        raise InvalidValue(
            f"the sketches hold {data.nbytes} bytes; expected less than 4 GiB. Split the pool over several requests.",
            param="sketches",
        )
    header: bytes = msgpack.packb(request.header())
    return [header + _bin_prefix(data.nbytes), data]


def _bin_prefix(length: int) -> bytes:
    code, width = next((c, w) for c, w in _BIN_LENGTH_BYTES.items() if length < 1 << 8 * w)
    return bytes([code]) + length.to_bytes(width, "big")


def split_body(body: memoryview) -> tuple[Any, memoryview]:
    """The header and the bytes of the bin, viewed in place, of a msgpack body.

    Raises:
        MalformedRequest: not a header map followed by exactly one bin that ends with the body; behind a header with
            `products`, or with `pass_rates` and no `projection`, the bin may be missing.
    """
    split = _split(body, len(body))
    assert split is not None
    return split


def _split(body: memoryview, arrived: int) -> tuple[Any, memoryview] | None:
    """As `split_body`, of a body of which only the first bytes are there; None where they do not tell yet."""
    if arrived >= min(_LONGEST_MAGIC, len(body)):
        _refuse_compressed(body)
    found = _read_header(body, arrived)
    if found is None or (arrived < len(body) and arrived < found[1] + _LONGEST_BIN_PREFIX):
        return None
    header, start = found
    if len(body) <= start:
        if without_bin(header):
            return header, body[start:]
        raise MalformedRequest(
            f"the body ends after its header, at byte {start}; expected a msgpack bin with the sketches behind it, or "
            "products in it, or pass_rates and rollouts without a projection."
        )
    width = _BIN_LENGTH_BYTES.get(body[start])
    if width is None:
        raise MalformedRequest(
            f"byte {start}, behind the header, is 0x{body[start]:02x}; expected a msgpack bin (0xc4, 0xc5 or 0xc6) "
            "with the sketches. Pack the sketches as bytes, not as a list or a string."
        )
    begin = start + 1 + width
    declared = int.from_bytes(body[start + 1 : begin], "big")
    present = len(body) - begin
    if declared != present:
        fault = "truncated" if present < declared else "followed by other bytes"
        raise MalformedRequest(
            f"the bin declares {declared} bytes and {max(present, 0)} are there: the body is {fault}. Send two msgpack "
            "objects and nothing else."
        )
    return header, body[begin:]


def _refuse_compressed(body: bytes | memoryview) -> None:
    """Tell a compressed body from a broken one; the scorer inflates none, whose size nobody could know beforehand."""
    head = bytes(body[:_LONGEST_MAGIC])
    for magic, name in _MAGIC.items():
        if head.startswith(magic):
            raise MalformedRequest(
                f"the body begins with 0x{magic.hex()}, as {name} does; expected the bytes of JSON or msgpack as they are. "
                "Send it uncompressed: float16 and int8 sketches save more, and at once."
            )


def _read_header(body: memoryview, arrived: int) -> tuple[Any, int] | None:
    limit = min(arrived, MAX_HEADER_BYTES)
    feed = min(_FIRST_FEED, limit)
    while True:
        unpacker = msgpack.Unpacker(max_buffer_size=MAX_HEADER_BYTES, strict_map_key=True, **_LIMITS)
        unpacker.feed(body[:feed])
        try:
            return unpacker.unpack(), unpacker.tell()
        except msgpack.OutOfData:
            if feed == limit:
                if arrived < min(len(body), MAX_HEADER_BYTES):
                    return None
                raise MalformedRequest(
                    f"the header does not end within {limit} bytes: the body is truncated, or its header larger than "
                    f"{MAX_HEADER_BYTES} bytes. Send a complete msgpack map first."
                ) from None
            feed = min(feed * 4, limit)
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise MalformedRequest(
                f"the header is not msgpack ({type(error).__name__}: {error}); expected a map with string keys."
            ) from None


def decode_arriving(message: type[Sketched], body: memoryview, arrived: int) -> Sketched | None:
    """As `decode_request` for msgpack, of a body of which only the first `arrived` bytes are there.

    Returns:
        The request, whose sketches view all of `body`, what is still to come included; None while the bytes do not hold the
        whole header.
    """
    split = _split(body, arrived)
    return None if split is None else message.from_header(*split)


def decode_request(message: type[Sketched], content_type: str, body: memoryview) -> Sketched:
    """A /score or /refresh_validation request from its bytes; the sketches are a view of `body` for msgpack.

    Args:
        message: ScoreRequest or RefreshRequest.
        content_type: the Content-Type header; parameters after `;` are ignored.
        body: the whole body.

    Raises:
        UnsupportedMediaType, MalformedRequest, InvalidValue
    """
    kind = media_type(content_type)
    if kind == MSGPACK:
        return message.from_header(*split_body(body))
    if kind == JSON:
        return message.from_json(decode_json(body))
    raise UnsupportedMediaType(
        f"Content-Type is {content_type[:80]!r}; expected {MSGPACK} or {JSON}.", param="Content-Type"
    )


def media_type(content_type: str) -> str:
    """The media type without parameters, in lower case; msgpack's unregistered spelling is taken too."""
    kind = content_type.split(";", 1)[0].strip().lower()
    return MSGPACK if kind in ("application/x-msgpack", "application/vnd.msgpack") else kind


class _Constant(float):
    """NaN, Infinity or -Infinity, written as such: a number too large for float64 is read as infinite too."""


def decode_json(body: bytes | memoryview) -> Any:
    """A JSON value.

    Raises:
        MalformedRequest: with the place of the fault.
        InvalidValue: it holds an integer of thousands of digits.
    """
    _refuse_compressed(body)
    try:
        return json.loads(bytes(body), parse_constant=_Constant)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedRequest(f"the body is not JSON: {error}.") from None
    except ValueError:
        raise InvalidValue(
            "the body holds an integer of more than 4,300 digits; expected numbers within float64, +-1.8e308.",
            param="body",
        ) from None


def encode_value(value: Mapping[str, Any], content_type: str) -> bytes:
    """A reply, an error or a small request in the given encoding; non-finite numbers are refused by JSON."""
    if content_type == MSGPACK:
        packed: bytes = msgpack.packb(value)
        return packed
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def decode_value(body: bytes, content_type: str, *, most_items: int | None = None) -> Any:
    """A value from either encoding, by Content-Type.

    Args:
        body: the whole body.
        content_type: the Content-Type header; parameters after `;` are ignored.
        most_items: longest list that msgpack may declare, for bodies of strangers. None: as long as the body.

    Raises:
        MalformedRequest: the bytes are not what the Content-Type says.
        UnsupportedMediaType: neither msgpack nor JSON.
    """
    kind = media_type(content_type)
    if kind == JSON:
        return decode_json(body)
    if kind != MSGPACK:
        raise UnsupportedMediaType(
            f"Content-Type is {content_type[:80]!r}; expected {MSGPACK} or {JSON}.", param="Content-Type"
        )
    _refuse_compressed(body)
    try:
        longest = len(body) if most_items is None else min(most_items, len(body))
        return msgpack.unpackb(body, max_ext_len=0, max_array_len=longest)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise MalformedRequest(f"the body is not msgpack ({type(error).__name__}: {error}).") from None

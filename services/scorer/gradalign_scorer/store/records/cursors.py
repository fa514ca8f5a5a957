"""The cursor of a page of problems: the priority and id of the last one shown."""

from __future__ import annotations

import base64
import binascii
import math

from gradalign import InvalidValue
from gradalign.wire.checks import shown

__all__ = ["decode_cursor", "encode_cursor"]


def encode_cursor(score: bytes, member: bytes) -> str:
    """A cursor behind a member of the sorted set of priorities; URL-safe text."""
    return base64.urlsafe_b64encode(score + b"," + member).decode().rstrip("=")


def decode_cursor(cursor: str) -> tuple[bytes, bytes]:
    """The score and member of a cursor; InvalidValue for text that no page gave."""
    try:
        raw = base64.b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        score, comma, member = raw.partition(b",")
        sound = bool(comma) and bool(member) and not math.isnan(float(score))
    except (ValueError, binascii.Error):
        sound = False
    if not sound:
        raise InvalidValue(
            f"cursor is {shown(cursor)}; expected the `next` of an earlier page, unchanged, or none for the first page.",
            param="cursor",
        )
    return score, member

"""The cursor of a page of problems."""

import pytest

from gradalign import InvalidValue
from gradalign_scorer.store.records.cursors import decode_cursor, encode_cursor


@pytest.mark.parametrize(
    ("score", "member"), [(b"-0.5", b"p1"), (b"inf", b"a,b"), (b"1e-300", "дом/1?".encode()), (b"0", b"x" * 256)]
)
def test_round_trip_through_text_that_needs_no_quoting(score, member):
    cursor = encode_cursor(score, member)
    assert decode_cursor(cursor) == (score, member)
    assert cursor.replace("-", "").replace("_", "").isalnum()


@pytest.mark.parametrize("cursor", ["", "0", "2", "next", "!!!!", "é", "bmFuLHA", "LTAuNSw"])
def test_text_that_no_page_gave_is_refused(cursor):
    with pytest.raises(InvalidValue, match="unchanged") as caught:
        decode_cursor(cursor)
    assert caught.value.param == "cursor"

"""The checksum of a stored validation gradient."""

import zlib

import msgpack
import numpy as np
import pytest

from gradalign import Unavailable
from gradalign_scorer.store import ValidationRecord

RECORD = ValidationRecord(3, 17, np.arange(64, dtype=np.float32), 2.5)


def test_round_trip():
    found = ValidationRecord.unpack(RECORD.pack())
    assert (found.version, found.policy_version, found.length) == (3, 17, 2.5)
    np.testing.assert_array_equal(found.vector, RECORD.vector)


def test_every_damaged_byte_is_found():
    packed = RECORD.pack()
    for place in range(len(packed)):
        damaged = bytearray(packed)
        damaged[place] ^= 1
        with pytest.raises(Unavailable, match="checksum"):
            ValidationRecord.unpack(bytes(damaged))


@pytest.mark.parametrize("cut", [0, 1, 10, 100])
def test_a_truncated_blob_is_found(cut):
    with pytest.raises(Unavailable, match="refresh_validation again"):
        ValidationRecord.unpack(RECORD.pack()[:cut])


def test_a_blob_from_before_lengths_were_kept_is_read():
    data = RECORD.vector.tobytes()
    old = msgpack.packb([3, 17, zlib.crc32(data, zlib.crc32(b"3|17")), data])
    assert ValidationRecord.unpack(old).length == 0.0

"""What is stored of a validation gradient: an immutable blob with a checksum."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import msgpack
import numpy as np
import numpy.typing as npt

from gradalign import Unavailable

__all__ = ["ValidationRecord"]


@dataclass(frozen=True)
class ValidationRecord:
    """A validation gradient.

    A version is written once and its number is never used again within the run's incarnation, so (incarnation, version)
    names it for good and replicas may cache it by that.

    Attributes:
        version: its number within the run, from 1.
        policy_version: the weights it was taken at.
        vector: unit vector, float32 [dim].
        length: of the gradient in this direction, for a later refresh to let it decay; 0 where it was not kept.
    """

    version: int
    policy_version: int
    vector: npt.NDArray[np.float32]
    length: float = 0.0

    def pack(self) -> bytes:
        """The record with a CRC-32 over all of it."""
        data = np.ascontiguousarray(self.vector, dtype="<f4").tobytes()
        packed: bytes = msgpack.packb([self.version, self.policy_version, self._checksum(data), data, self.length])
        return packed

    def _checksum(self, data: bytes) -> int:
        length = f"|{self.length!r}" if self.length else ""
        return zlib.crc32(data, zlib.crc32(f"{self.version}|{self.policy_version}{length}".encode()))

    @classmethod
    def unpack(cls, packed: bytes) -> ValidationRecord:
        """The record of packed bytes; Unavailable where they were damaged."""
        try:
            version, policy_version, checksum, data, *more = msgpack.unpackb(packed)
            record = cls(version, policy_version, np.frombuffer(data, dtype="<f4"), *more)
            intact = record._checksum(data) == checksum
        except (ValueError, TypeError, msgpack.UnpackException):
            intact = False
        if not intact:
            raise Unavailable(
                "the stored validation gradient fails its checksum: the store's data are damaged. Send "
                "/refresh_validation again, and check the store's disk and memory.",
                retry_after=1.0,
            )
        return record

"""Files that may be compressed, read as what they hold: gzip and Zstandard, told by their first bytes."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, NamedTuple

from gradalign_trainer.datasets.records.schema import DataError
from gradalign_trainer.datasets.sources.remote import Source

__all__ = ["COMPRESSED", "Contents", "open_contents"]

COMPRESSED = (".gz", ".zst")
"""Endings that a file of records may have behind its own."""

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_STRANGERS = {b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"PK\x03\x04": "zip", b"7z\xbc\xaf": "7-Zip"}


class Contents(NamedTuple):
    """A file that is open.

    Attributes:
        file: what it holds, uncompressed.
        passed: bytes of the file on disk that are read.
    """

    file: IO[bytes]
    passed: Callable[[], int]

    def lines(self, path: Source) -> Iterator[tuple[int, bytes]]:
        """Yield the number and the bytes of every line.

        Raises:
            DataError: the archive is cut short or damaged.
        """
        number = 0
        try:
            for number, line in enumerate(self.file, start=1):
                yield number, line
        except (EOFError, zlib.error, OSError) as error:
            raise _damaged(path, number + 1, error) from error

    def whole(self, path: Source) -> bytes:
        """All of it.

        Raises:
            DataError: the archive is cut short or damaged.
        """
        read = b""
        try:
            while part := self.file.read(1 << 20):
                read += part
        except (EOFError, zlib.error, OSError) as error:
            raise _damaged(path, read.count(b"\n") + 1, error) from error
        return read


def _damaged(path: Source, line: int, error: Exception) -> DataError:
    return DataError(
        f"{path}:{line}: the file cannot be read from here on: {error}. Expected a whole gzip or Zstandard file, or one "
        "that is not compressed; copy it anew."
    )


@contextmanager
def open_contents(path: Source) -> Iterator[Contents]:
    """Open a file of records, uncompressed while it is read, whatever its ending.

    Raises:
        DataError: it is an archive of another kind.
    """
    with path.open("rb") as raw:
        start = raw.peek(8)[:8]
        other = next((name for magic, name in _STRANGERS.items() if start.startswith(magic)), None)
        if other is not None:
            raise DataError(
                f"{path} is a {other} archive; expected JSON, plain or compressed by gzip or Zstandard. Unpack it, or "
                "compress what it holds with gzip."
            )
        if start.startswith(_GZIP):
            with gzip.GzipFile(fileobj=raw) as file:
                yield Contents(io.BufferedReader(file), raw.tell)
        elif start.startswith(_ZSTD):
            import pyarrow

            stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, mode="r"), "zstd")
            with io.BufferedReader(stream) as file:
                yield Contents(file, raw.tell)
        else:
            yield Contents(raw, raw.tell)

"""Files that are elsewhere, by URL: `s3://`, `gs://`, `https://`, whatever fsspec knows. They are read as a stream."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from gradalign_trainer.datasets.records.schema import DataError

__all__ = ["RemoteFile", "Source", "source"]


class _Stat(NamedTuple):
    st_size: int


class RemoteFile:
    """A file by URL, with the names of `pathlib.Path` that readers use.

    Args:
        url: `protocol://...`, as fsspec has it.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.name = url.rstrip("/").rpartition("/")[2]
        self.suffix = Path(self.name).suffix

    def __str__(self) -> str:
        return self.url

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemoteFile) and other.url == self.url

    def __hash__(self) -> int:
        return hash(self.url)

    def is_file(self) -> bool:
        """Whether it is there.

        Raises:
            DataError: nothing reads such URLs here, or the place cannot be asked.
        """
        return bool(self._asked("isfile"))

    def stat(self) -> _Stat:
        """Its size in bytes; 0 where the place does not tell."""
        return _Stat(int(self._asked("size") or 0))

    def identity(self) -> str:
        """What changes when the file does, as its place tells it: of a checksum, or of size and time."""
        return str(self._asked("ukey"))

    def open(self, mode: str = "rb") -> io.BufferedReader:
        """Open it for reading; `mode` is "rb"."""
        assert mode == "rb"
        return io.BufferedReader(self._asked("open", "rb"))

    def _asked(self, method: str, *arguments: str) -> Any:
        try:
            from fsspec.core import url_to_fs

            system, path = url_to_fs(self.url)
            return getattr(system, method)(path, *arguments)
        except (ImportError, OSError, ValueError) as error:
            raise DataError(
                f"{self.url} cannot be reached: {error}. Expected the URL of a file that can be read from here; fsspec "
                "reads it, with the package of its protocol (s3fs for s3://, gcsfs for gs://, aiohttp for https://)."
            ) from error


Source: TypeAlias = Path | RemoteFile
"""Where a file of records is."""


def source(text: str) -> Source:
    """A path, or a URL where the text has a protocol."""
    return RemoteFile(text) if "://" in text else Path(text)

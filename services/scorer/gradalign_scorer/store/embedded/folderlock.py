"""A lock on a folder that ends with its holder, however the holder ends."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import IO

__all__ = ["FolderLock", "open_private"]

_POLL_SECONDS = 0.02


def open_private(path: Path) -> IO[bytes]:
    """Open a file to append to, made for this user alone: whoever may read a file may also lock it, for ever."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600), "ab")


class FolderLock:
    """An exclusive `flock` on a file. A child process that inherits `fileno` holds it too, until it ends.

    Args:
        path: of the file; made if missing, and never removed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None

    @property
    def fileno(self) -> int:
        """The descriptor that holds the lock."""
        assert self._file is not None
        return self._file.fileno()

    def take(self, seconds: float = 0.0) -> bool:
        """Whether the lock could be had within the time; OSError where the file cannot be opened."""
        file = open_private(self._path)
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    file.close()
                    return False
                time.sleep(_POLL_SECONDS)
            else:
                self._file = file
                return True

    def give_back(self) -> None:
        """Close this process's hold; a second call does nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None

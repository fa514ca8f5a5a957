"""The accepted API keys, which may change while the scorer runs."""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from gradalign_scorer.access.keyfile import key_digest, read_key_file
from gradalign_scorer.access.scopes import Access
from gradalign_scorer.settings import SettingsError

__all__ = ["KeyRing"]

_LOG = logging.getLogger(__name__)
_LOOK_SECONDS = 1.0


class KeyRing:
    """Keys of the environment, which may do everything, and keys of a file, which is read again when it changes.

    A file that cannot be used any more leaves the last good keys in force, and an error in the log: a slip of an editor
    must neither stop a training run nor open the door.

    Args:
        keys: from the environment.
        path: of the key file; None for none.

    Raises:
        SettingsError: the file cannot be used.
    """

    def __init__(self, keys: Sequence[bytes], path: Path | None = None) -> None:
        self._fixed = {key_digest(key): Access() for key in keys}
        self._path = path
        self._seen = _signature(path)
        self._next_look = time.monotonic() + _LOOK_SECONDS
        self._keys = self._read()

    @property
    def required(self) -> bool:
        """Whether a request needs a key."""
        return bool(self._keys)

    def access(self, key: bytes) -> Access | None:
        """What a key may do; None for one that is not accepted.

        Digests are compared, every one of them whole, so the time taken says nothing about the keys.
        """
        if self._path is not None and time.monotonic() >= self._next_look:
            self._look()
        given = key_digest(key)
        found: Access | None = None
        for digest, access in self._keys.items():
            if hmac.compare_digest(given, digest):
                found = access
        return found

    def _look(self) -> None:
        self._next_look = time.monotonic() + _LOOK_SECONDS
        if _signature(self._path) != self._seen:
            self.reload()

    def reload(self) -> None:
        """Read the file again; what was accepted stays so where it cannot be used."""
        self._seen = _signature(self._path)
        try:
            self._keys = self._read()
        except SettingsError as error:
            _LOG.error("the keys stay as they were: %s", error)
        else:
            _LOG.info("read %d API keys", len(self._keys))

    def _read(self) -> dict[bytes, Access]:
        return {**self._fixed, **(read_key_file(self._path, self._fixed) if self._path else {})}


def _signature(path: Path | None) -> tuple[int, ...] | None:
    """Changes with the file's content, place or mode."""
    try:
        found = path.stat() if path else None
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size) if found else None

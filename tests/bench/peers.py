"""What the scorer is compared with, each a process of its own: a raw socket, and the server of a first version."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["MIB", "naive_server", "raw_sink", "send_raw"]

MIB = 1 << 20
PIECE = 512 << 10

SINK = """
import socket, sys
family = socket.AF_UNIX if sys.argv[1] == "unix" else socket.AF_INET
listener = socket.socket(family, socket.SOCK_STREAM)
listener.bind(sys.argv[2] if sys.argv[1] == "unix" else ("127.0.0.1", 0))
listener.listen()
print("" if sys.argv[1] == "unix" else listener.getsockname()[1], flush=True)
connection, _ = listener.accept()
buffer = memoryview(bytearray(1 << 20))
while head := connection.recv(8, socket.MSG_WAITALL):
    left = int.from_bytes(head, "little")
    while left:
        left -= connection.recv_into(buffer[: min(left, len(buffer))])
    connection.sendall(b"k")
"""

NAIVE = """
import sys
import msgpack, numpy, torch, uvicorn
from fastapi import FastAPI, Request

app, dim = FastAPI(), int(sys.argv[2])
vector = torch.randn(dim)

@app.post("/score")
async def score(request: Request):
    message = msgpack.unpackb(await request.body())
    sketches = torch.from_numpy(numpy.frombuffer(message["sketches"], numpy.float16).reshape(-1, dim).copy())
    alignments = sketches.float() @ vector / sketches.float().norm(dim=1)
    ranking = sorted(zip(alignments.tolist(), message["problem_ids"]), reverse=True)
    return {"problem_ids": [name for _, name in ranking], "alignments": [value for value, _ in ranking]}

uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error")
"""


@contextmanager
def raw_sink(path: Path | None) -> Iterator[socket.socket]:
    """A connection to a process that reads messages and acknowledges each; over a Unix socket where there is a path."""
    kind = ["tcp", "-"] if path is None else ["unix", str(path)]
    process = subprocess.Popen([sys.executable, "-c", SINK, *kind], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    port = process.stdout.readline().strip()
    try:
        connection = socket.socket(socket.AF_INET if path is None else socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(("127.0.0.1", int(port)) if path is None else str(path))
        with connection:
            yield connection
    finally:
        process.kill()
        process.wait()


def send_raw(connection: socket.socket, data: memoryview) -> None:
    """Send one message in pieces, and wait until it is read."""
    connection.sendall(len(data).to_bytes(8, "little"))
    for start in range(0, len(data), PIECE):
        connection.sendall(data[start : start + PIECE])
    assert connection.recv(1) == b"k"


@contextmanager
def naive_server(dim: int) -> Iterator[str]:
    """The URL of a server that takes msgpack the obvious way."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-c", NAIVE, str(port), str(dim)])
    try:
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()

"""Whether shared memory would hand sketches over faster than a Unix socket: from the trainer's array to the products.

    python tests/bench/bench_handover.py [--mib N] [--dim N] [--repeats N]

Two processes, as on one host. The far side takes the products of all rows, 8 MiB at a time, on a thread of its own, as the
scorer does, and answers with one byte. Contestants take turns; the median of all repetitions counts.

    socket          the bytes through a Unix socket into a buffer that is used again, scored while they arrive
    shared, copied  copied into shared memory, scored while they are copied: what a client's call could do
    shared, there   they lie in shared memory already: the least it could take, were the trainer to write its sketches there
"""

from __future__ import annotations

import argparse
import multiprocessing
import socket
import statistics
import threading
import time
from collections.abc import Callable
from multiprocessing.shared_memory import SharedMemory
from queue import SimpleQueue

import numpy as np
import torch

from gradalign import SketchMatrix
from gradalign_scorer.ranking.alignment import SketchRows, products

PIECE = 8 << 20
CPU = torch.device("cpu")


def serve(near: socket.socket, name: str, size: int, dim: int) -> None:
    """The far side: a byte says how the sketches of the next turn come."""
    torch.set_num_threads(1)
    shared, buffer = SharedMemory(name), bytearray(size)
    vector = torch.ones(dim) / dim**0.5
    queue: SimpleQueue[memoryview | None] = SimpleQueue()
    done: SimpleQueue[None] = SimpleQueue()

    def compute() -> None:
        while (part := queue.get()) is not None:
            products(SketchRows([SketchMatrix(part, len(part) // (2 * dim), dim, "float16")]), vector, CPU)
            del part  # or the shared memory could not be closed
            done.put(None)

    threading.Thread(target=compute, daemon=True).start()
    while kind := near.recv(1):
        view = memoryview(buffer) if kind == b"s" else shared.buf[:size]
        for start in range(0, size, PIECE):
            part = view[start : start + PIECE]
            if kind == b"s":
                filled = 0
                while filled < len(part):
                    filled += near.recv_into(part[filled:])
            elif kind == b"c":
                near.recv(1)
            queue.put(part)
        for _ in range(0, size, PIECE):
            done.get()
        near.sendall(b".")
        del view, part
    queue.put(None)
    shared.close()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--dim", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    size = options.mib << 20
    sketches = memoryview(np.random.default_rng(0).standard_normal(size // 2).astype(np.float16)).cast("B")
    shared = SharedMemory(create=True, size=size)
    near, far = socket.socketpair()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(far, shared.name, size, options.dim))
    process.start()
    far.close()

    def through_socket() -> None:
        near.sendall(b"s")
        near.sendall(sketches)

    def copied() -> None:
        near.sendall(b"c")
        for start in range(0, size, PIECE):
            shared.buf[start : start + PIECE] = sketches[start : start + PIECE]
            near.sendall(b"!")

    def there() -> None:
        near.sendall(b"t")

    runs: dict[str, Callable[[], None]] = {"socket": through_socket, "shared, copied": copied, "shared, there": there}
    shared.buf[:size] = sketches
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.repeats):
        for name, send in runs.items():
            start = time.perf_counter()
            send()
            near.recv(1)
            seconds[name].append(time.perf_counter() - start)
    near.close()
    process.join()
    shared.close()
    shared.unlink()
    base = statistics.median(seconds["socket"])
    for name, found in seconds.items():
        middle = statistics.median(found)
        print(f"  {name:<16}{1e3 * middle:8.1f} ms   {base / middle:5.2f}x the socket")


if __name__ == "__main__":
    main()

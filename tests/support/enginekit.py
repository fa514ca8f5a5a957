"""A compute thread whose jobs wait until they are told to go on."""

import asyncio
import threading
import time
from contextlib import contextmanager

from gradalign_scorer.service.engine import Engine, pick_device


class Gate:
    """A job that waits until it is let through."""

    def __init__(self):
        self.entered, self.open = threading.Event(), threading.Event()

    def __call__(self):
        self.entered.set()
        assert self.open.wait(120)
        return "through"


async def started(gate):
    """Wait, without blocking the loop, until the thread is within the gate."""
    assert await asyncio.to_thread(gate.entered.wait, 120)


def soon(condition):
    deadline = time.monotonic() + 120
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    return condition()


@contextmanager
def running(capacity=8, **settings):
    engine = Engine(pick_device("cpu"), capacity, **settings)
    engine.start()
    try:
        yield engine
    finally:
        assert engine.close(120)

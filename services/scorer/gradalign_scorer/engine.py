"""The compute thread: one thread, a bounded queue, off the event loop.

With compute inline, health checks wait for it; on a thread of its own they answer within milliseconds.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import torch

from gradalign import GradAlignError, Overloaded, Unavailable

__all__ = ["Engine", "pick_device"]

T = TypeVar("T")
_PROBE_SECONDS = 1.0


def pick_device(setting: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU; anything else is torch's name of a device.

    Raises:
        GradAlignError: no such device; the message names the setting.
    """
    if setting == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(setting)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise GradAlignError(
            f"GRADALIGN_DEVICE (--device) is {setting!r}, which torch cannot use ({reason}); give auto, cpu, cuda or cuda:N."
        ) from None
    return device


class Engine:
    """Runs jobs one after another on a thread of its own. A job that raises fails only itself.

    Attributes:
        busy_seconds: that the thread has worked, without the job in work.

    Args:
        device: that jobs compute on.
        capacity: how many jobs may wait; more are refused with Overloaded.
        stuck_seconds: a job that runs longer than this counts as stuck.
    """

    def __init__(self, device: torch.device, capacity: int, *, stuck_seconds: float = 60.0) -> None:
        self.device = device
        self.capacity = capacity
        self.busy_seconds = 0.0
        self._stuck_seconds = stuck_seconds
        self._jobs: queue.Queue[tuple[Future[Any], Callable[[], Any]] | None] = queue.Queue(capacity)
        self._thread = threading.Thread(target=self._work, name="gradalign-compute", daemon=True)
        self._closed = False
        self._busy_since: float | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def depth(self) -> int:
        """Jobs that wait."""
        return self._jobs.qsize()

    async def run(self, job: Callable[[], T]) -> T:
        """The result of a job, or its exception; a job whose caller is cancelled before its turn is skipped.

        Raises:
            Overloaded: the queue is full.
            Unavailable: the engine is closed.
        """
        if self._closed:
            raise Unavailable(
                "the scorer is shutting down; retry, another replica or its successor answers.", retry_after=1.0
            )
        future: Future[T] = Future()
        try:
            self._jobs.put_nowait((future, job))
        except queue.Full:
            raise Overloaded(
                f"{self._jobs.maxsize} requests wait for the compute thread, which is all it takes; retry, send fewer at a "
                "time, or raise GRADALIGN_QUEUE_SIZE.",
                retry_after=0.1,
            ) from None
        try:
            return await asyncio.wrap_future(future)
        finally:
            # A job's error holds this frame and the job: a circle would keep the request's body until it is collected.
            del future, job

    async def alive(self) -> bool:
        """Whether the thread answers: a no-op goes through it when it is idle, and no job has run for too long.

        It does not wait behind the jobs of others, so it answers at once under load.
        """
        if not self._thread.is_alive():
            return False
        since = self._busy_since
        if since is not None:
            return time.monotonic() - since < self._stuck_seconds
        try:
            await asyncio.wait_for(self.run(lambda: None), _PROBE_SECONDS)
        except Overloaded:
            return True
        except Unavailable:
            return False
        except TimeoutError:
            since = self._busy_since
            return since is not None and time.monotonic() - since < self._stuck_seconds
        return True

    def close(self, seconds: float) -> bool:
        """Finish what waits, then end the thread; False where it did not end within the time."""
        self._closed = True
        if not self._thread.is_alive():
            return True
        try:
            self._jobs.put(None, timeout=seconds)
        except queue.Full:
            return False
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (item := self._jobs.get()) is not None:
            self._do(*item)
            # A job holds its request's body: let it go before waiting for the next.
            del item

    def _do(self, future: Future[Any], job: Callable[[], Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        self._busy_since = began = time.monotonic()
        # Idle before the caller hears of it: who asks next must not find the job that it has the result of.
        try:
            result = job()
        except BaseException as error:
            self._rest(began)
            future.set_exception(error)
        else:
            self._rest(began)
            future.set_result(result)
        finally:
            # The error's traceback holds this frame, and the future holds the error.
            del future, job

    def _rest(self, began: float) -> None:
        self._busy_since = None
        self.busy_seconds += time.monotonic() - began

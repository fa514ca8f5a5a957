"""The compute thread: one thread, a bounded queue, off the event loop.

With compute inline, health checks wait for it; on a thread of its own they answer within milliseconds. Work of
one kind that comes while it is busy is done together, at its next turn.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from gradalign import GradAlignError, Overloaded, Unavailable

__all__ = ["Engine", "pick_device"]

T = TypeVar("T")
Item = TypeVar("Item")
_PROBE_SECONDS = 1.0
_TOGETHER = 16
"""Items to a turn: with more, the others would wait for longer than the pass gains."""


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
        self._jobs: queue.Queue[_Turn | None] = queue.Queue(capacity)
        self._open: dict[Hashable, _Turn] = {}
        self._opening = threading.Lock()
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
        return await self.run_together(None, job, _alone)

    async def run_together(
        self, kind: Hashable, item: Item, work: Callable[[Sequence[Item]], Sequence[T | Exception]]
    ) -> T:
        """The result of one item of work that is cheaper done for several at once.

        Items of a kind that come before the thread turns to the first of them are done with it, at most 16 at a time.
        Where the work itself raises, all of them fail; to fail one, it returns the exception in that one's place.

        Args:
            kind: of the work; None for work that is done alone.
            item: to do it on.
            work: takes the items of one kind and gives their results in order.

        Raises:
            Overloaded: the queue is full.
            Unavailable: the engine is closed.
        """
        future: Future[T] = Future()
        self._queue(kind, (future, item), work)
        try:
            return await asyncio.wrap_future(future)
        finally:
            # A job's error holds this frame and the job: a circle would keep the request's body until it is collected.
            del future, item, work

    def _queue(self, kind: Hashable, entry: _Entry, work: Callable[[Sequence[Any]], Sequence[Any]]) -> None:
        if self._closed:
            raise Unavailable(
                "the scorer is shutting down; retry, another replica or its successor answers.", retry_after=1.0
            )
        with self._opening:
            turn = self._open.get(kind)
            if turn is not None and len(turn.entries) < _TOGETHER:
                turn.entries.append(entry)
                return
            turn = _Turn(kind, [entry], work)
            try:
                self._jobs.put_nowait(turn)
            except queue.Full:
                raise Overloaded(
                    f"{self._jobs.maxsize} requests wait for the compute thread, which is all it takes; retry, send fewer "
                    "at a time, or raise GRADALIGN_QUEUE_SIZE.",
                    retry_after=0.1,
                ) from None
            if kind is not None:
                self._open[kind] = turn

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

    def computing(self) -> bool:
        """Whether the thread still works, after `close` too."""
        return self._thread.is_alive()

    def _work(self) -> None:
        while (turn := self._jobs.get()) is not None:
            with self._opening:
                if self._open.get(turn.kind) is turn:
                    del self._open[turn.kind]
            self._do(turn)
            # A job holds its request's body: let it go before waiting for the next.
            del turn

    def _do(self, turn: _Turn) -> None:
        entries = [entry for entry in turn.entries if entry[0].set_running_or_notify_cancel()]
        turn.entries.clear()
        if not entries:
            return
        self._busy_since = began = time.monotonic()
        # Idle before a caller hears of it: who asks next must not find the job that it has the result of.
        entry = result = results = None
        try:
            results = turn.work([item for _, item in entries])
        except BaseException as error:
            self._rest(began)
            for entry in entries:
                entry[0].set_exception(error)
        else:
            self._rest(began)
            for entry, result in zip(entries, results, strict=True):
                _settle(entry[0], result)
        finally:
            # The error's traceback holds this frame, and the future holds the error.
            entries.clear()
            results = entry = result = None

    def _rest(self, began: float) -> None:
        self._busy_since = None
        self.busy_seconds += time.monotonic() - began


_Entry = tuple[Future[Any], Any]


@dataclass(eq=False, slots=True)
class _Turn:
    """What the thread does at one go."""

    kind: Hashable
    entries: list[_Entry]
    work: Callable[[Sequence[Any]], Sequence[Any]]


def _settle(future: Future[Any], result: Any) -> None:
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)


def _alone(jobs: Sequence[Callable[[], T]]) -> list[T]:
    (job,) = jobs
    return [job()]

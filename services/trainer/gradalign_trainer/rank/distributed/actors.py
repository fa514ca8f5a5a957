"""Workers as actors of Ray, each with a copy of the policy: on a GPU of its own, or on CPUs.

A worker has at most two batches at once, one that it measures and one that waits, so what is under way is bounded. A
batch whose worker is lost, by itself or with its node, goes to another one; a new worker takes the place of the lost.
Where it died before it was ready, the next waits: a cluster notices a lost node late, and places workers there till then.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

from gradalign.errors import GradAlignError
from gradalign.wire.projection import Projection
from gradalign_trainer.rank.distributed.replica import Replica
from gradalign_trainer.rank.distributed.shards import Batch, Pooled, Shard
from gradalign_trainer.rank.steps.responses import ResponseGroup
from gradalign_trainer.rank.steps.settings import RankSettings

__all__ = ["RayWorkers"]

AT_ONCE = 2  # batches of a worker
LIVES = 3  # deaths at one batch, or at starts one after the other, that are no accident
PAUSE = 15.0  # seconds from a failed start to the next, twice as many after the second
KNOCK_LIMIT = 30.0  # seconds
START_LIMIT = 600.0  # seconds without any worker
LOOK_EVERY = 5.0  # seconds
logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Job:
    name: str
    call: Callable[[Any], Any]  # handle of a worker -> reference of the result
    subject: Any = None
    deaths: int = 0


class _Worker:
    def __init__(self, handle: Any, failed_before: int) -> None:
        self.handle = handle
        self.failed_before = failed_before
        self.jobs: deque[_Job] = deque()


class RayWorkers:
    """Measures batches on the actors of a cluster, as a context manager.

    Args:
        settings: of the ranking.
        address: of a cluster, as `ray.init` takes it; "" for one of our own on this machine, or what RAY_ADDRESS names.
        workers: how many; None for as many as the cluster has GPUs, or CPUs for `threads` each.
        threads: of a worker on CPUs.

    Attributes:
        rank: 0; one process hands out all batches.
        restarted: False; Ray begins no driver anew.

    Raises:
        GradAlignError: Ray is not installed.
    """

    rank, restarted = 0, False

    def __init__(self, settings: RankSettings, address: str, workers: int | None, threads: int) -> None:
        self._ray = _imported()
        self._settings, self._address, self._wanted, self._threads = settings, address, workers, threads
        self._workers: set[_Worker] = set()
        self._starting: dict[Any, _Worker] = {}
        self._running: dict[Any, tuple[_Worker, _Job]] = {}
        self._again: deque[_Job] = deque()
        self._against: Any = None
        self._projection: Projection | None = None
        self._failed_starts = 0
        self._due: list[float] = []
        self._alive_at = time.monotonic()
        self._own = False

    def __enter__(self) -> Self:
        self._connect()
        try:
            self._begin_workers()
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def _connect(self) -> None:
        if self._ray.is_initialized():
            return
        address = self._address or os.environ.get("RAY_ADDRESS") or "local"
        local = address == "local"
        common = {"log_to_driver": False, "logging_level": logging.WARNING}
        own = {"include_dashboard": False, "num_cpus": self._local_cpus()} if local else {}
        try:
            _knock(address)
            self._ray.init(address=address, **common, **own)
        except (OSError, ValueError, RuntimeError) as error:
            raise GradAlignError(
                f"--ray {self._address or address}: no cluster can be joined there: {error}. Expected host:port of a head "
                "that runs the same release of Ray, or auto on a machine of the cluster; --ray alone starts one here."
            ) from error
        self._own = True

    def _local_cpus(self) -> int | None:
        return None if self._wanted is None else max(self._wanted * self._threads, 1)

    def meet(self) -> None:
        """There is no other process to wait for."""

    def share(self, numbers: Sequence[int] | None) -> Sequence[int]:
        """All of them."""
        return numbers or ()

    def release(self) -> None:
        """Let the workers end."""
        for worker in [*self._workers, *self._starting.values()]:
            self._ray.kill(worker.handle)
        self._workers.clear()
        self._starting.clear()

    def _leave(self) -> None:
        self.release()
        if self._own:
            self._ray.shutdown()

    def _begin_workers(self) -> None:
        total = self._ray.cluster_resources()
        device = self._settings.device
        gpu = device.startswith("cuda") or (device == "auto" and total.get("GPU", 0) >= 1)
        room = int(total.get("GPU", 0)) if gpu else int(total.get("CPU", 0)) // self._threads
        wanted = self._wanted or max(room, 1)
        if room < wanted:
            logger.warning(
                "the cluster has room for %d of %d workers now (%s); the others begin when there is.",
                room,
                wanted,
                "GPUs" if gpu else f"{self._threads} CPUs each",
            )
        needs = {"num_cpus": 1, "num_gpus": 1} if gpu else {"num_cpus": self._threads, "num_gpus": 0}
        self._actor = self._ray.remote(Replica).options(
            max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD", **needs
        )
        self._of_worker = replace(self._settings, device="cuda" if gpu else "cpu")
        for _ in range(wanted):
            self._begin()

    def _begin(self) -> None:
        worker = _Worker(self._actor.remote(self._of_worker, self._threads), self._failed_starts)
        self._starting[worker.handle.start.remote()] = worker

    def projection(self) -> Projection:
        """How sketches are made; waits for the first worker.

        Raises:
            GradAlignError: the policy cannot be loaded, or no worker begins.
        """
        while self._projection is None:
            self._settle()
        return self._projection

    def pooled(self, groups: Sequence[ResponseGroup]) -> tuple[Pooled, bytes]:
        """What is kept of the full gradient of all groups together, taken by one worker; and that gradient as bytes.

        Raises:
            GradAlignError: it is zero or not finite, or no worker does it.
        """
        job = _Job("the validation gradient", lambda handle: handle.pooled.remote(groups))
        found: tuple[Pooled, bytes] = next(self._results([job]))[1]
        return found

    def hold(self, gradient: bytes) -> None:
        """Let all workers take exact products with this full gradient."""
        self._against = self._ray.put(gradient)
        for worker in self._workers:
            worker.handle.hold.remote(self._against)

    def measure(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Shard, list[str]]]:
        """What batches give, in the order in which they are done; batches are taken as workers want them.

        Raises:
            GradAlignError: a batch fails, or workers die of it.
        """
        for job, (shard, faults) in self._results(_job(batch) for batch in batches):
            yield job.subject, shard, faults

    def _results(self, jobs: Iterable[_Job]) -> Iterator[tuple[_Job, Any]]:
        more = iter(jobs)
        while True:
            self._hand_out(more)
            if not self._running and not self._again:
                following = next(more, None)
                if following is None:
                    return
                self._again.append(following)
            settled = self._settle()
            if settled is not None:
                yield settled

    def _hand_out(self, more: Iterator[_Job]) -> None:
        for worker in sorted(self._workers, key=lambda worker: len(worker.jobs)):
            while len(worker.jobs) < AT_ONCE:
                job = self._again.popleft() if self._again else next(more, None)
                if job is None:
                    return
                worker.jobs.append(job)
                self._running[job.call(worker.handle)] = (worker, job)

    def _settle(self) -> tuple[_Job, Any] | None:
        """Wait for one thing to happen; a job with its result, where that is what happened."""
        self._begin_due()
        awaited = [*self._running, *self._starting]
        if not awaited:
            time.sleep(max(min(self._due) - time.monotonic(), 0.0))
            return None
        done, _ = self._ray.wait(awaited, num_returns=1, timeout=LOOK_EVERY)
        if self._workers:
            self._alive_at = time.monotonic()
        if not done:
            self._check_patience()
            return None
        if done[0] in self._running:
            return self._finished(done[0])
        self._started(done[0])
        return None

    def _begin_due(self) -> None:
        now = time.monotonic()
        for _ in range(sum(due <= now for due in self._due)):
            self._begin()
        self._due = [due for due in self._due if due > now]

    def _started(self, reference: Any) -> None:
        worker = self._starting.pop(reference)
        try:
            self._projection = self._got(reference)
        except self._ray.exceptions.RayError as error:
            if worker.failed_before == self._failed_starts:  # those that began together fail together, with their node
                self._failed_starts += 1
            if self._failed_starts >= LIVES:
                raise GradAlignError(
                    f"{LIVES} workers died one after the other while they loaded {self._settings.model}; the last words: "
                    f"{_first_line(error)} Look for memory that ran out, on the node or on the GPU."
                ) from error
            pause = PAUSE * 2 ** max(self._failed_starts - 1, 0)
            logger.warning("a worker died while it loaded; another begins in %.0f s: %s", pause, _first_line(error))
            self._ray.kill(worker.handle)
            self._due.append(time.monotonic() + pause)
            return
        self._failed_starts = 0
        if self._against is not None:
            worker.handle.hold.remote(self._against)
        self._workers.add(worker)

    def _finished(self, reference: Any) -> tuple[_Job, Any] | None:
        worker, job = self._running[reference]
        try:
            result = self._got(reference)
        except self._ray.exceptions.RayError as error:
            self._lose(worker, error)
            return None
        del self._running[reference]
        worker.jobs.remove(job)
        return job, result

    def _got(self, reference: Any) -> Any:
        """A result; an error of the worker's own code as a GradAlignError, one of Ray's as it is."""
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            cause = getattr(error, "cause", error)
            if isinstance(cause, GradAlignError):
                raise cause from None
            raise GradAlignError(
                f"a worker failed: {type(cause).__name__}: {cause}. What was measured is kept, --resume goes on from it; "
                "where memory ran out, lower --rows-per-backward."
            ) from error

    def _lose(self, worker: _Worker, error: Exception) -> None:
        first = worker.jobs[0]
        first.deaths += 1
        if first.deaths >= LIVES:
            raise GradAlignError(
                f"{LIVES} workers died at {first.name}; the last words: {_first_line(error)} Look for memory that ran "
                "out, and lower --rows-per-backward; --resume goes on from what is measured."
            ) from error
        logger.warning("a worker was lost at %s, which goes to another: %s", first.name, _first_line(error))
        self._running = {key: pair for key, pair in self._running.items() if pair[0] is not worker}
        self._again.extendleft(reversed(worker.jobs))
        self._workers.discard(worker)
        self._ray.kill(worker.handle)
        self._begin()

    def _check_patience(self) -> None:
        if time.monotonic() - self._alive_at < START_LIMIT:
            return
        raise GradAlignError(
            f"no worker began within {START_LIMIT:.0f} s. Expected a GPU for each, or {self._threads} CPUs where there are "
            f"none; the cluster has free {self._ray.available_resources()}. --resume goes on from what is measured."
        )


def _job(batch: Batch) -> _Job:
    return _Job(str(batch), lambda handle: handle.measure.remote(batch), batch)


def _knock(address: str) -> None:
    """Raise OSError where nobody listens at host:port; Ray would try for many minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit() and "//" not in host:
        socket.create_connection((host.strip("[]"), int(port)), KNOCK_LIMIT).close()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _imported() -> Any:
    try:
        import ray
    except ImportError as error:
        raise GradAlignError(
            "--ray needs the package ray, which is not installed here: pip install 'gradalign[ray]'. Without Ray, torchrun "
            "shares a ranking too."
        ) from error
    return ray

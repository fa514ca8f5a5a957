"""The compute thread: one, bounded, never killed by a job, and holding on to nothing."""

import asyncio
import gc
import threading
import time
import weakref
from contextlib import contextmanager

import pytest

from gradalign import Overloaded, Unavailable
from gradalign_scorer.service.engine import Engine, pick_device


class Payload:
    """Stands for a request's body: what may be referred to weakly."""


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


def test_jobs_run_one_at_a_time_in_order_on_one_thread():
    seen, inside = [], []

    def job(number):
        inside.append(number)
        assert inside == [number]
        time.sleep(0.001)
        inside.pop()
        seen.append((number, threading.current_thread().name))
        return number * 2

    async def go(engine):
        return await asyncio.gather(*(engine.run(lambda i=i: job(i)) for i in range(50)))

    with running(50) as engine:
        assert asyncio.run(go(engine)) == [i * 2 for i in range(50)]
    assert seen == [(i, "gradalign-compute") for i in range(50)]


@pytest.mark.parametrize(
    "error", [ValueError("no"), KeyboardInterrupt(), SystemExit(3), MemoryError(), GeneratorExit()]
)
def test_a_job_that_raises_fails_only_itself(error):
    def fail():
        raise error

    async def go(engine):
        before = engine.run(lambda: 1)
        # A task would let KeyboardInterrupt and SystemExit out of the loop, so the job is put in by hand.
        caught = None
        try:
            await engine.run(fail)
        except BaseException as raised:
            caught = raised
        return await before, caught, await engine.run(lambda: 2), await engine.alive()

    with running() as engine:
        assert asyncio.run(go(engine)) == (1, error, 2, True)


def test_work_of_a_cancelled_caller_is_dropped():
    ran = []

    async def go(engine):
        gate = Gate()
        first = asyncio.create_task(engine.run(gate))
        await started(gate)
        waiting = [asyncio.create_task(engine.run(lambda i=i: ran.append(i))) for i in range(3)]
        await asyncio.sleep(0)
        assert engine.depth == 3
        waiting[1].cancel()
        await asyncio.sleep(0)
        gate.open.set()
        results = await asyncio.gather(first, *waiting, return_exceptions=True)
        return [type(result) for result in results]

    with running() as engine:
        assert asyncio.run(go(engine)) == [str, type(None), asyncio.CancelledError, type(None)]
    assert ran == [0, 2]


def test_a_caller_cancelled_in_the_middle_leaves_the_thread_alone():
    async def go(engine):
        gate = Gate()
        task = asyncio.create_task(engine.run(gate))
        await started(gate)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.open.set()
        return await engine.run(lambda: "next")

    with running() as engine:
        assert asyncio.run(go(engine)) == "next"


def test_a_full_queue_refuses_at_once_and_frees_again():
    async def go(engine):
        gate = Gate()
        tasks = [asyncio.create_task(engine.run(gate))]
        await started(gate)
        tasks += [asyncio.create_task(engine.run(lambda: "waited")) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="GRADALIGN_QUEUE_SIZE") as caught:
            await engine.run(lambda: None)
        assert caught.value.retry_after == 0.1
        assert await engine.alive()
        gate.open.set()
        assert await asyncio.gather(*tasks) == ["through", "waited", "waited"]
        return await engine.run(lambda: "again")

    with running(2) as engine:
        assert asyncio.run(go(engine)) == "again"
        assert engine.depth == 0


def test_the_loop_goes_on_while_a_job_runs():
    async def go(engine):
        gate = Gate()
        task = asyncio.create_task(engine.run(gate))
        await started(gate)
        await asyncio.sleep(0.01)
        assert not task.done()
        gate.open.set()
        return await task

    with running() as engine:
        assert asyncio.run(go(engine)) == "through"


class TestTogether:
    """Items of one kind that wait are one turn of the thread."""

    @staticmethod
    def work(turns):
        def doubled(items):
            turns.append(list(items))
            return [ValueError(f"not {item}") if item < 0 else 2 * item for item in items]

        return doubled

    def go(self, *calls, meanwhile=lambda tasks: None):
        """Results of `(kind, item)` that came while the thread was busy, and the turns it took over them."""
        turns = []

        async def main(engine):
            gate = Gate()
            first = asyncio.create_task(engine.run(gate))
            await started(gate)
            tasks = [asyncio.create_task(engine.run_together(kind, item, self.work(turns))) for kind, item in calls]
            await asyncio.sleep(0)
            meanwhile(tasks)
            await asyncio.sleep(0)
            gate.open.set()
            return (await asyncio.gather(first, *tasks, return_exceptions=True))[1:]

        with running(64) as engine:
            return asyncio.run(main(engine)), turns

    def test_each_caller_has_its_own_result(self):
        assert self.go(("a", 1), ("b", 2), ("a", 3), ("a", 4)) == ([2, 4, 6, 8], [[1, 3, 4], [2]])

    def test_an_item_that_is_refused_fails_only_its_caller(self):
        results, turns = self.go(("a", 1), ("a", -5), ("a", 2))
        assert (results[0], str(results[1]), results[2]) == (2, "not -5", 4)
        assert turns == [[1, -5, 2]]

    def test_a_cancelled_caller_is_left_out_even_the_first(self):
        results, turns = self.go(("a", 1), ("a", 2), ("a", 3), meanwhile=lambda tasks: tasks[0].cancel())
        assert isinstance(results[0], asyncio.CancelledError)
        assert (results[1:], turns) == ([4, 6], [[2, 3]])

    def test_a_turn_takes_sixteen(self):
        results, turns = self.go(*(("a", i) for i in range(40)))
        assert results == [2 * i for i in range(40)]
        assert [len(turn) for turn in turns] == [16, 16, 8]

    def test_nothing_waits_for_company(self):
        async def main(engine):
            return [await engine.run_together("a", i, self.work(turns)) for i in range(3)]

        turns = []
        with running() as engine:
            assert asyncio.run(main(engine)) == [0, 2, 4]
        assert turns == [[0], [1], [2]]

    def test_a_turn_takes_one_place_of_the_queue(self):
        async def main(engine):
            gate = Gate()
            first = asyncio.create_task(engine.run(gate))
            await started(gate)
            tasks = [asyncio.create_task(engine.run_together("a", i, self.work([]))) for i in range(10)]
            await asyncio.sleep(0)
            assert engine.depth == 1
            with pytest.raises(Overloaded):
                await engine.run_together("b", 1, self.work([]))
            gate.open.set()
            return await asyncio.gather(first, *tasks)

        with running(1) as engine:
            assert asyncio.run(main(engine))[1:] == [2 * i for i in range(10)]

    def test_work_that_raises_fails_all_of_its_turn_and_no_other(self):
        def fail(items):
            raise MemoryError(f"for {len(items)}")

        async def main(engine):
            gate = Gate()
            first = asyncio.create_task(engine.run(gate))
            await started(gate)
            tasks = [asyncio.create_task(engine.run_together("a", i, fail)) for i in range(2)]
            tasks.append(asyncio.create_task(engine.run_together("b", 7, self.work([]))))
            await asyncio.sleep(0)
            gate.open.set()
            return (await asyncio.gather(first, *tasks, return_exceptions=True))[1:]

        with running() as engine:
            one, two, other = asyncio.run(main(engine))
        assert (str(one), str(two), other) == ("for 2", "for 2", 14)


class TestAlive:
    def test_when_idle_and_not_before_the_start_nor_after_the_end(self):
        engine = Engine(pick_device("cpu"), 2)
        assert not asyncio.run(engine.alive())
        engine.start()
        assert asyncio.run(engine.alive())
        assert engine.close(120)
        assert not asyncio.run(engine.alive())

    @pytest.mark.parametrize(("stuck_seconds", "alive"), [(3600.0, True), (0.01, False)])
    def test_a_job_that_runs_for_too_long_counts_as_stuck(self, stuck_seconds, alive):
        async def go(engine):
            gate = Gate()
            task = asyncio.create_task(engine.run(gate))
            await started(gate)
            await asyncio.sleep(0.05)
            asked = time.perf_counter()
            answer = await engine.alive()
            # It must not wait behind the job, which goes on until its gate opens: a probe has a timeout of its own.
            assert time.perf_counter() - asked < 30
            gate.open.set()
            await task
            return answer, await engine.alive()

        with running(stuck_seconds=stuck_seconds) as engine:
            assert asyncio.run(go(engine)) == (alive, True)


class TestClosing:
    def test_what_waits_is_finished_and_what_comes_is_refused(self):
        async def go(engine):
            gate = Gate()
            tasks = [asyncio.create_task(engine.run(job)) for job in (gate, lambda: "waited")]
            await started(gate)
            closing = asyncio.create_task(asyncio.to_thread(engine.close, 120))
            # The mark of the end waits behind the job.
            assert await asyncio.to_thread(soon, lambda: engine.depth == 2)
            with pytest.raises(Unavailable, match="shutting down"):
                await engine.run(lambda: None)
            gate.open.set()
            return await asyncio.gather(closing, *tasks)

        with running() as engine:
            assert asyncio.run(go(engine)) == [True, "through", "waited"]

    def test_a_stuck_job_does_not_hold_the_process(self):
        async def go(engine):
            gate = Gate()
            task = asyncio.create_task(engine.run(gate))
            await started(gate)
            begun = time.perf_counter()
            assert not engine.close(0.05)
            assert time.perf_counter() - begun < 30  # the job waits for longer
            gate.open.set()
            await task

        with running() as engine:
            asyncio.run(go(engine))

    def test_twice_and_without_a_start(self):
        engine = Engine(pick_device("cpu"), 2)
        assert engine.close(1)
        with running() as engine:
            assert engine.close(120)


class TestMemory:
    """A job holds its request's body, up to a gibibyte: it must not wait for the next job, nor for the collector."""

    @pytest.fixture(autouse=True)
    def no_collector(self):
        gc.collect()
        gc.disable()
        yield
        gc.enable()

    def freed(self, payload):
        """Whether it is gone soon: the thread may be a moment behind the loop."""
        return soon(lambda: payload() is None)

    def test_of_a_job_that_is_done(self):
        async def go(engine):
            body = Payload()
            await engine.run(lambda body=body: id(body))
            return weakref.ref(body)

        with running() as engine:
            assert self.freed(asyncio.run(go(engine)))

    def test_of_a_result(self):
        async def go(engine):
            return weakref.ref(await engine.run(Payload))

        with running() as engine:
            assert self.freed(asyncio.run(go(engine)))

    def test_of_items_done_together(self):
        async def go(engine):
            gate = Gate()
            first = asyncio.create_task(engine.run(gate))
            await started(gate)
            bodies = [Payload() for _ in range(3)]
            tasks = [
                asyncio.create_task(engine.run_together("a", body, lambda items: [None] * len(items)))
                for body in bodies
            ]
            gone = [weakref.ref(body) for body in bodies]
            await asyncio.sleep(0)
            gate.open.set()
            await asyncio.gather(first, *tasks)
            return gone

        with running() as engine:
            assert all(map(self.freed, asyncio.run(go(engine))))

    def test_of_a_job_that_raised(self):
        def fail(body):
            raise ValueError(id(body))

        async def go(engine):
            body = Payload()
            try:
                await engine.run(lambda body=body: fail(body))
            except ValueError:
                return weakref.ref(body)

        with running() as engine:
            assert self.freed(asyncio.run(go(engine)))

    def test_of_a_job_whose_caller_was_cancelled(self):
        async def go(engine):
            gate, body = Gate(), Payload()
            first = asyncio.create_task(engine.run(gate))
            await started(gate)
            second = asyncio.create_task(engine.run(lambda body=body: id(body)))
            await asyncio.sleep(0)
            second.cancel()
            await asyncio.gather(second, return_exceptions=True)
            gate.open.set()
            await first
            return weakref.ref(body)

        with running() as engine:
            assert self.freed(asyncio.run(go(engine)))

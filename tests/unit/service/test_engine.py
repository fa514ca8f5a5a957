"""The compute thread: one at a time, in order, off the event loop; it ends and says whether it lives."""

import asyncio
import threading
import time

import pytest
from enginekit import Gate, running, soon, started

from gradalign import Overloaded, Unavailable
from gradalign_scorer.service.engine import Engine, pick_device


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

"""Small requests that wait for the compute thread share one pass."""

import asyncio
import gc
import weakref

import pytest
from enginekit import Gate, running, soon, started

from gradalign import Overloaded


class Payload:
    """Stands for a request's body: what may be referred to weakly."""


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

"""Scorers that are killed, scorers that share a store, and replies that get lost on the way to the trainer."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from gradalign import AsyncClient, Client, Fenced, UnavailableError


class LosesReplies(httpx.HTTPTransport):
    """Sends every request for real, and loses the replies to the first few that change something."""

    def __init__(self, lose):
        super().__init__()
        self.lose, self.sent = lose, 0

    def handle_request(self, request):
        response = super().handle_request(request)
        if request.method == "POST":
            self.sent += 1
            if self.lose > 0:
                self.lose -= 1
                response.read()
                response.close()
                raise httpx.ReadError("the connection broke before the reply", request=request)
        return response


@pytest.fixture(scope="module")
def second_scorer(scorer, valkey_url, forks):
    """Another scorer on the session's Valkey."""
    process = type(scorer)(valkey_url, forks=forks)
    yield process
    process.end()


def test_a_request_whose_reply_is_lost_is_stored_once(scorer, run_id, problem_ids, sketches, projection):
    transport = LosesReplies(0)
    with Client(scorer.url, run_id=run_id, transport=transport) as client:
        client.refresh_validation(problem_ids, sketches, policy_version=0, projection=projection)
        transport.lose, transport.sent = 2, 0
        ranking = client.score(problem_ids, sketches, policy_version=1, projection=projection, select=3)
        assert transport.sent == 3
        transport.lose, transport.sent = 1, 0
        refreshed = client.refresh_validation(problem_ids, sketches, policy_version=1, projection=projection)
        assert transport.sent == 2
        transport.lose, transport.sent = 1, 0
        picked = client.select(2, policy_version=1)
        assert transport.sent == 2
        assert refreshed.validation_version == client.run().validation_version == 2
        states = {i: client.problem(i) for i in problem_ids}
        assert {state.times_scored for state in states.values()} == {1}
        assert sum(state.times_selected for state in states.values()) == len(ranking.selected) + len(picked.selected)
        assert [r.kind for r in client.rounds()] == ["refresh", "score", "refresh", "select"]


def test_a_killed_scorer_loses_nothing_it_acknowledged(
    start_scorer, tmp_path, run_id, problem_ids, sketches, projection
):
    """Killed again and again with a request on its way; each request that failed is sent again to the next scorer."""
    flags = ("--data-dir", str(tmp_path / "data"))
    sent, selected = 0, 0
    for life in range(2):
        scorer = start_scorer(*flags, redis_url=None)
        with Client(scorer.url, run_id=run_id, retries=0, timeout=120) as client:
            if life == 0:
                client.refresh_validation(problem_ids, sketches, policy_version=0, projection=projection)
            state = client.run()
            assert (state.rounds, state.validation_version) == (sent + 1, 1)
            killer = threading.Timer(0.15 + 0.1 * life, scorer.kill)
            killer.start()
            pending = None
            while pending is None:
                request = f"request-{sent}"
                try:
                    client.score(
                        problem_ids, sketches, policy_version=1, projection=projection, select=1, request_id=request
                    )
                    sent += 1
                except UnavailableError:
                    pending = request
            killer.join()
        heir = start_scorer(*flags, redis_url=None)
        with Client(heir.url, run_id=run_id, retries=0) as client:
            assert client.run().rounds in (sent + 1, sent + 2)  # the last one may have been stored, unacknowledged
            client.score(problem_ids, sketches, policy_version=1, projection=projection, select=1, request_id=pending)
            sent += 1
            states = [client.problem(i) for i in problem_ids]
            assert {state.times_scored for state in states} == {sent}
            selected = sum(state.times_selected for state in states)
            assert selected == sent
            assert client.run().rounds == sent + 1
        assert heir.end() == 0


def test_two_scorers_on_one_store_serve_one_run(scorer, second_scorer, run_id, problem_ids, sketches, projection):
    a, b = scorer, second_scorer
    rng = np.random.default_rng(1)
    other = rng.standard_normal(sketches.shape).astype(np.float16)
    with Client(a.url, run_id=run_id) as on_a, Client(b.url, run_id=run_id) as on_b:
        on_a.refresh_validation(problem_ids, sketches, policy_version=0, projection=projection)
        first = on_a.score(problem_ids, sketches, policy_version=0, projection=projection)
        seen = {row.problem_id: row.priority for row in on_b.problems().problems}
        assert seen == pytest.approx(dict(zip(first.problem_ids, first.priorities, strict=True)), abs=1e-6)

        refreshed = on_b.refresh_validation(problem_ids, other, policy_version=1, projection=projection)
        on_a_now = on_a.score(problem_ids, sketches, policy_version=1, projection=projection)
        on_b_now = on_b.score(problem_ids, sketches, policy_version=1, projection=projection)
        assert on_a_now.validation_version == refreshed.validation_version == 2
        assert on_a_now.alignments == on_b_now.alignments
        assert on_a_now.alignments != first.alignments

        on_a.snapshot("shared")
        on_b.score(problem_ids, other, policy_version=5, projection=projection)
        on_b.restore("shared")
        assert on_a.run().policy_version == 1
        assert on_a.select(3, policy_version=1, seed=4, request_id="pick") == on_b.select(
            3, policy_version=1, seed=4, request_id="pick"
        )
        on_b.delete_run()
        again = on_a.refresh_validation(problem_ids, other, policy_version=0, projection=projection)
        fresh = on_b.score(problem_ids, sketches, policy_version=0, projection=projection)
        assert (again.validation_version, fresh.validation_version) == (1, 1)
        assert fresh.alignments == on_b_now.alignments  # not those of the deleted run's version 1


def test_a_request_moves_to_another_scorer_when_its_own_dies(
    start_scorer, scorer, run_id, problem_ids, sketches, projection
):
    a, b = start_scorer(), scorer
    with Client(a.url, run_id=run_id, retries=0) as on_a, Client(b.url, run_id=run_id, retries=0) as on_b:
        on_a.refresh_validation(problem_ids, sketches, policy_version=0, projection=projection)
        arguments = {"policy_version": 1, "projection": projection, "request_id": "moved"}
        first = on_a.score(problem_ids, sketches, **arguments)
        a.kill()
        with pytest.raises(UnavailableError):
            on_a.score(problem_ids, sketches, **arguments)
        assert on_b.score(problem_ids, sketches, **arguments) == first
        assert on_b.problem(problem_ids[0]).times_scored == 1


def test_concurrent_trainers_on_two_scorers_lose_no_update(
    scorer, second_scorer, run_id, problem_ids, sketches, projection
):
    scorers = [scorer, second_scorer]
    with Client(scorers[0].url, run_id=run_id) as client:
        client.refresh_validation(problem_ids, sketches, policy_version=0, projection=projection)

        def train(worker):
            with Client(scorers[worker % 2].url, run_id=run_id, retries=20) as own:
                for step in range(15):
                    chosen = [(worker + step + j) % 8 for j in range(4)]
                    own.score([problem_ids[i] for i in chosen], sketches[chosen], policy_version=0,
                              projection=projection, select=1)  # fmt: skip
                    if step % 5 == 0:
                        own.refresh_validation(problem_ids, sketches, policy_version=0, projection=projection)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(train, range(8)))
        states = [client.problem(i) for i in problem_ids]
        assert sum(state.times_scored for state in states) == 8 * 15 * 4
        assert sum(state.times_selected for state in states) == 8 * 15
        run = client.run()
        assert (run.rounds, run.validation_version) == (1 + 8 * 15 + 8 * 3, 1 + 8 * 3)


def test_the_successor_of_a_trainer_fences_it_off(scorer, second_scorer, run_id, problem_ids, sketches, projection):
    a, b = scorer, second_scorer
    with Client(a.url, run_id=run_id, epoch=1) as zombie, Client(b.url, run_id=run_id, epoch=2) as successor:
        zombie.refresh_validation(problem_ids, sketches, policy_version=3, projection=projection)
        zombie.snapshot("step-3")
        zombie.score(problem_ids, sketches, policy_version=4, projection=projection, request_id="late")
        successor.restore("step-3")
        successor.score(problem_ids, sketches, policy_version=3, projection=projection)
        for request_id in ("late", "new"):
            with pytest.raises(Fenced, match="has taken this run over"):
                zombie.score(problem_ids, sketches, policy_version=4, projection=projection, request_id=request_id)
        assert successor.run().policy_version == 3
        assert successor.problem(problem_ids[0]).times_scored == 1


def test_a_resumed_trainer_may_send_its_old_request_ids_again(scorer, run_id, problem_ids, sketches, projection):
    """Bit-for-bit resumption derives the same ids; what the restore undid is applied again, the rest is not."""
    with Client(scorer.url, run_id=run_id) as client:

        def step(number):
            return client.score(
                problem_ids, sketches, policy_version=number, projection=projection, request_id=f"step-{number}"
            )

        client.refresh_validation(problem_ids, sketches, policy_version=0, projection=projection)
        step(1)
        client.snapshot("step-1")
        before = step(2)
        client.restore("step-1")
        assert client.problem(problem_ids[0]).times_scored == 1
        assert step(1).policy_version == 1
        assert client.problem(problem_ids[0]).times_scored == 1
        assert step(2) == before
        assert client.problem(problem_ids[0]).times_scored == 2


def test_a_trainer_that_gives_up_in_the_middle_blocks_nobody(scorer, run_id, problem_ids, sketches, projection):
    async def go():
        async with AsyncClient(scorer.url, run_id=run_id, retries=0) as client:
            await client.refresh_validation(problem_ids, sketches, policy_version=0, projection=projection)
            for i in range(40):
                task = asyncio.create_task(client.score(problem_ids, sketches, policy_version=0, projection=projection))
                await asyncio.sleep(i * 2e-4)
                task.cancel()
            done = await client.score(problem_ids, sketches, policy_version=1, projection=projection)
            return done, await client.run(), await client.problem(problem_ids[0])

    done, run, problem = asyncio.run(go())
    assert done.policy_version == run.policy_version == 1
    assert problem.times_scored == run.rounds - 1

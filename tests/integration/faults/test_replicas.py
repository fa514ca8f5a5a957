"""Four scorers over a cluster of three primaries, and sixteen trainers that know them all."""

import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from clusters import cluster

from gradalign import Client

SCORERS, TRAINERS, REQUESTS, BATCH = 4, 16, 12, 8


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with cluster(tmp_path_factory.mktemp("replicas")) as made:
        yield made


@pytest.fixture
def scorers(store, start_scorer):
    return [start_scorer(redis_url=store.url) for _ in range(SCORERS)]


def addresses(scorers, number):
    """All of them, each trainer's with another one in front."""
    turn = number % len(scorers)
    return [scorer.url for scorer in (*scorers[turn:], *scorers[:turn])]


def train(urls, run, number, projection, all_begun):
    """Score the trainer's own problems and a few that all trainers of the run score; what each request gave."""
    sketches = np.random.default_rng(number).standard_normal((BATCH, projection.dim)).astype(np.float16)
    ids = [f"{number}-{i}" for i in range(BATCH - 2)] + ["shared-0", "shared-1"]
    ranked = []
    with Client(urls, run_id=run, retries=60) as client:
        for _ in range(REQUESTS):
            ranking = client.score(ids, sketches, policy_version=1, projection=projection, select=2)
            ranked.append(sorted(ranking.problem_ids) == sorted(ids))
            if len(ranked) == 1:
                all_begun.wait(120)
    return ranked


@pytest.mark.parametrize("runs", [1, pytest.param(TRAINERS, marks=pytest.mark.long)])
def test_every_request_of_sixteen_trainers_is_applied_once_though_a_scorer_dies(scorers, run_id, projection, runs):
    names = [f"{run_id}-{number % runs}" for number in range(TRAINERS)]
    for name in set(names):
        with Client(scorers[0].url, run_id=name) as client:
            client.refresh_validation(
                ["v"], np.ones((1, projection.dim), np.float16), policy_version=0, projection=projection
            )
    # Nobody's second request goes out before everybody's first is answered: the scorer dies in the middle.
    all_begun = threading.Barrier(TRAINERS, action=lambda: scorers[1].process.send_signal(signal.SIGKILL))

    with ThreadPoolExecutor(TRAINERS) as pool:
        jobs = [
            pool.submit(train, addresses(scorers, number), names[number], number, projection, all_begun)
            for number in range(TRAINERS)
        ]
        assert all(all(job.result(240)) for job in jobs)
    for name in set(names):
        members = names.count(name)
        with Client(scorers[3].url, run_id=name) as client:
            times = {row.problem_id: row.times_scored for row in client.problems(limit=1000).problems}
            assert client.run().rounds == 1 + members * REQUESTS
        own = {each: count for each, count in times.items() if not each.startswith("shared")}
        assert len(own) == members * (BATCH - 2)
        assert set(own.values()) == {REQUESTS}
        assert times["shared-0"] == times["shared-1"] == members * REQUESTS
    assert scorers[1].process.poll() == -signal.SIGKILL

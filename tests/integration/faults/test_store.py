"""The store fails under real scorers: what was acknowledged is there, once, and the scorers recover by themselves."""

import os
import signal
import threading
import time

import httpx
import numpy as np
import pytest
import redis

from gradalign import Client, Unavailable
from gradalign_scorer.store import EmbeddedServer


@pytest.fixture
def valkey(tmp_path):
    """A Valkey of the test's own."""
    with EmbeddedServer(tmp_path / "valkey") as server:
        yield server


@pytest.fixture
def own_scorer(start_scorer, valkey):
    return start_scorer(redis_url=valkey.url)


class Trainer(threading.Thread):
    """Scores the same problems again and again until it is told to stop; `rounds` were acknowledged."""

    def __init__(self, url, run_id, ids, sketches, projection):
        super().__init__(daemon=True)
        self.client = Client(url, run_id=run_id, retries=40, timeout=120)
        self.request = (ids, sketches)
        self.projection = projection
        self.rounds = 0
        self.error = None
        self.enough = threading.Event()

    def run(self):
        try:
            with self.client:
                while not self.enough.is_set():
                    self.client.score(*self.request, policy_version=1, projection=self.projection)
                    self.rounds += 1
        except Exception as error:
            self.error = error

    def wait_for(self, rounds, seconds=120):
        deadline = time.monotonic() + seconds
        while self.rounds < rounds:
            assert self.error is None, self.error
            assert time.monotonic() < deadline, f"{self.rounds} of {rounds} rounds"
            time.sleep(0.01)

    def finish(self):
        self.enough.set()
        self.join(120)
        assert self.error is None, self.error
        assert not self.is_alive()


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGTERM])
def test_the_store_is_restarted_in_the_middle_of_scoring(
    own_scorer, valkey, run_id, problem_ids, sketches, projection, blow
):
    with Client(own_scorer.url, run_id=run_id) as client:
        client.refresh_validation(problem_ids, sketches, policy_version=0, projection=projection)
        trainers = [Trainer(own_scorer.url, run_id, problem_ids, sketches, projection) for _ in range(3)]
        for trainer in trainers:
            trainer.start()
        for _ in range(2):
            for trainer in trainers:
                trainer.wait_for(trainer.rounds + 10)
            os.kill(valkey.pid, blow)
        for trainer in trainers:
            trainer.wait_for(trainer.rounds + 10)
        for trainer in trainers:
            trainer.finish()
        total = sum(trainer.rounds for trainer in trainers)
        assert {client.problem(i).times_scored for i in problem_ids} == {total}
        assert client.run().rounds == total + 1
        assert client.run().validation_version == 1


def test_a_hanging_store_is_a_503_and_a_waking_one_serves_again(
    own_scorer, valkey, run_id, problem_ids, sketches, projection
):
    with Client(own_scorer.url, run_id=run_id, retries=0, timeout=120) as client:
        client.refresh_validation(problem_ids, sketches, policy_version=0, projection=projection)
        os.kill(valkey.pid, signal.SIGSTOP)
        try:
            with own_scorer.http() as http:
                began = time.monotonic()
                assert http.get("/livez").status_code == 200
                assert http.get("/readyz").status_code == 503
                assert time.monotonic() - began < 60
            began = time.monotonic()
            with pytest.raises(Unavailable, match="store does not answer") as caught:
                client.score(problem_ids, sketches, policy_version=1, projection=projection)
            assert time.monotonic() - began < 60
            assert caught.value.retry_after is not None
        finally:
            os.kill(valkey.pid, signal.SIGCONT)
        client.score(problem_ids, sketches, policy_version=2, projection=projection)
        assert client.run().policy_version == 2


def test_a_full_store_is_a_503_and_deleting_a_run_helps(own_scorer, valkey, run_id, problem_ids, sketches, projection):
    with (
        Client(own_scorer.url, run_id=run_id, retries=0) as client,
        Client(own_scorer.url, run_id=run_id + "-old", retries=0) as old,
        redis.Redis(unix_socket_path=valkey.url.removeprefix("unix://")) as raw,
    ):
        client.refresh_validation(problem_ids, sketches, policy_version=0, projection=projection)
        old.score([f"p{i}" for i in range(4000)], np.ones((4000, 32), np.float16), policy_version=0,
                  projection=projection, strategy="norm")  # fmt: skip
        raw.config_set("maxmemory", raw.info("memory")["used_memory"] - 50_000)
        with pytest.raises(Unavailable, match="full: raise its maxmemory, or DELETE runs"):
            client.score(problem_ids, sketches, policy_version=1, projection=projection)
        assert client.run().policy_version == 0
        old.delete_run()
        deadline = time.monotonic() + 120
        while raw.info("memory")["lazyfree_pending_objects"] and time.monotonic() < deadline:
            time.sleep(0.05)
        client.score(problem_ids, sketches, policy_version=1, projection=projection)
        assert client.run().policy_version == 1


def test_a_scorer_that_starts_before_its_store_waits_for_it(
    start_scorer, tmp_path, run_id, problem_ids, sketches, projection
):
    folder = tmp_path / "valkey"
    scorer = start_scorer(redis_url=f"unix://{folder / 'valkey.sock'}")
    with scorer.http() as http:
        assert http.get("/livez").status_code == 200
        assert http.get("/readyz").status_code == 503
        with EmbeddedServer(folder):
            deadline = time.monotonic() + 120
            while http.get("/readyz").status_code != 200 and time.monotonic() < deadline:
                time.sleep(0.05)
            with Client(scorer.url, run_id=run_id, retries=0) as client:
                client.refresh_validation(problem_ids, sketches, policy_version=0, projection=projection)
        with pytest.raises(httpx.HTTPStatusError):
            http.get("/readyz").raise_for_status()

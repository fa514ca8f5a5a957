"""A time of day that jumps under a scorer and its embedded store, forwards and back, while a trainer goes on."""

import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import redis
from rawhttp import wait_until

from gradalign import Client

HOUR, DAY = 3600, 24 * 3600
SHIM = Path(__file__).parents[2] / "support" / "shiftedclock.c"


@pytest.fixture
def clock(tmp_path, monkeypatch):
    """Sets the clock of processes started from now on: `clock(seconds from the true time)`."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not sys.platform.startswith("linux") or compiler is None:
        pytest.skip("a clock can be shifted only on Linux with a C compiler")
    library, shift = tmp_path / "clock.so", tmp_path / "shift"
    built = subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SHIM)],
        capture_output=True,
        text=True,
        check=False,
    )
    if built.returncode:
        pytest.skip(f"the shim for the clock does not compile here: {built.stderr[-300:]}")

    def set_to(seconds):
        fresh = shift.with_suffix(".new")
        fresh.write_text(f"{seconds}\n")
        fresh.replace(shift)

    set_to(0)
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("SHIFTED_CLOCK", str(shift))
    return set_to


def test_a_clock_that_jumps_costs_no_request_and_applies_none_twice(
    clock, start_scorer, tmp_path, run_id, problem_ids, sketches, projection
):
    data = tmp_path / "data"
    scorer = start_scorer("--data-dir", str(data), redis_url=None, fresh=True)
    sent, errors, enough = [0], [], threading.Event()

    def train():
        """Without retries: no jump may cost a single request."""
        try:
            with Client(scorer.url, run_id=run_id, retries=0, timeout=120) as own:
                while not enough.is_set():
                    own.score(problem_ids, sketches, policy_version=0, projection=projection)
                    sent[0] += 1
        except Exception as error:
            errors.append(error)

    with (
        Client(scorer.url, run_id=run_id, retries=0) as client,
        scorer.http() as http,
        redis.Redis(unix_socket_path=str(data / "valkey.sock")) as store,
    ):
        client.refresh_validation(problem_ids, sketches, policy_version=0, projection=projection)
        first = client.score(problem_ids, sketches, policy_version=0, projection=projection, request_id="first")
        trainer = threading.Thread(target=train)
        trainer.start()
        for shift in (HOUR, -2 * HOUR, 20 * HOUR, -30 * DAY, 0):
            clock(shift)
            wait_until(lambda s=shift: abs(store.time()[0] - time.time() - s) < 60)  # the store's clock has jumped
            at = sent[0]
            wait_until(lambda n=at: errors or sent[0] > n + 10)
            wait_until(lambda s=shift: abs(newest(client).at - time.time() - s) < 60)  # and the scorer's
            again = client.score(problem_ids, sketches, policy_version=0, projection=projection, request_id="first")
            assert again == first
            client.snapshot(f"at{shift}")
            assert http.get("/livez").status_code == http.get("/readyz").status_code == 200
            assert 0 <= http.get("/health").json()["uptime_seconds"] < 600
        enough.set()
        trainer.join(120)
        assert errors == []
        assert {client.problem(i).times_scored for i in problem_ids} == {sent[0] + 1}
        numbers = [record.round for record in client.rounds(limit=1000)]
        assert numbers == sorted(set(numbers))
        # A day ahead the stored replies are forgotten, as a day later; nothing else is.
        clock(40 * DAY)
        wait_until(lambda: store.time()[0] - time.time() > 39 * DAY)
        client.score(problem_ids, sketches, policy_version=0, projection=projection, request_id="first")
        assert client.problem("p0").times_scored == sent[0] + 2
        client.restore("at0")
        assert client.run().problems == len(problem_ids)
        assert client.score(problem_ids, sketches, policy_version=0, projection=projection).alignments
    scorer.kill()
    clock(-DAY)
    heir = start_scorer("--data-dir", str(data), redis_url=None, fresh=True)
    with Client(heir.url, run_id=run_id, retries=0) as client:
        assert client.score(problem_ids, sketches, policy_version=0, projection=projection).alignments


def newest(client):
    return client.rounds(after=client.run().rounds - 1)[-1]

"""Short forms of the long runs: kills and failovers at random moments under load, and wrong requests of every kind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


def run(script, *flags):
    """The script's output; its exit status says whether it found a fault."""
    done = subprocess.run(
        [sys.executable, str(BENCH / script), *flags],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.long
@pytest.mark.timeout(600)
def test_kills_at_random_moments_lose_nothing_and_double_nothing():
    """`python tests/bench/chaos.py --kills 200` is the long form."""
    assert "; 0 faults" in run("chaos.py", "--kills", "6", "--trainers", "2", "--seed", "5")


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("store", ["cluster", "sentinels"])
def test_primaries_killed_under_load_double_nothing_and_lose_nothing_that_waited_for_a_replica(store):
    """`python tests/bench/failover.py --store cluster --kills 20` is a long form."""
    said = run("failover.py", "--store", store, "--kills", "2", "--runs", "3", "--wait", "1")
    assert "0 lost, 0 doubled" in said


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_wrong_requests_of_every_kind_are_answered():
    """`python tests/bench/fuzz.py --requests 200000` is the long form."""
    assert "; 0 bad" in run("fuzz.py", "--requests", "3000", "--seed", "7")

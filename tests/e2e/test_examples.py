"""The loops of one's own in services/trainer/examples, run as a user runs them, in small."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gradalign import Client

EXAMPLES = Path(__file__).parents[2] / "services/trainer/examples"
# One trusted rollout in forty earns the reward: of 1,024 none does with a chance of e^-26, and there is a signal.
ALONE = [sys.executable, str(EXAMPLES / "own_loop.py"), "--pool=8", "--select=2", "--group=16"]
SHARDED = [
    *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"),
    *("--rdzv-endpoint=localhost:0", str(EXAMPLES / "own_loop_fsdp2.py"), "--pool=6", "--select=2", "--group=16"),
    "--trusted=64",
]


def run(command, base, url, run_id, rounds):
    flags = ["--model", str(base), "--scorer", url, "--run-id", run_id, "--rounds", str(rounds)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GRADALIGN_")}
    done = subprocess.run([*command, *flags], env=clean, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize(("command", "pool"), [(ALONE, 8), (SHARDED, 6)], ids=["alone", "fsdp2"])
def test_it_trains_on_what_the_scorer_chose(base, scorer, run_id, command, pool):
    printed = run(command, base, scorer.url, run_id, rounds=2)
    assert re.findall(r"^round (\d): reward [\d.]+, held-out accuracy [\d.]+$", printed, re.M) == ["1", "2"]
    assert "random choice" not in printed
    with Client(scorer.url, run_id=run_id) as client:
        rounds = client.rounds()
        assert [each.kind for each in rounds] == ["refresh", "score", "score"]
        assert [each.problems for each in rounds if each.kind == "score"] == [pool] * 2
        assert [each.policy_version for each in rounds] == [0, 0, 1]


def test_without_a_scorer_it_trains_all_the_same(base, run_id):
    printed = run(ALONE, base, "http://127.0.0.1:9", run_id, rounds=1)
    assert "random choice" in printed
    assert "held-out accuracy" in printed


def test_the_plain_one_is_short_enough_to_copy():
    assert len((EXAMPLES / "own_loop.py").read_text().splitlines()) < 119

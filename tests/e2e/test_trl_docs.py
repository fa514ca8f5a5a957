"""docs/adapters-trl.md: its example file and its block, run as printed but for their length."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from trlkit import graded, make_trainer, rows

from gradalign import Client
from gradalign_trainer.worlds.regimes import make_world

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/adapters-trl.md").read_text()
SHORT = ["--steps", "2", "--base-steps", "30"]
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]


def block(language):
    return re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL).group(1)


def test_the_commands_of_the_page_run(scorer, tmp_path):
    commands = [shlex.split(line)[1:] for line in block("sh").splitlines() if line.startswith("python ")]
    assert [command[1:] for command in commands] == [[], ["--plain"]]
    told = []
    for command in commands:
        ran = subprocess.run(
            [sys.executable, *command, *SHORT, "--scorer", scorer.url, "--cache", str(tmp_path)],
            cwd=ROOT, capture_output=True, text=True, timeout=500, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr[-3000:]
        told.append(json.loads(ran.stdout.splitlines()[-1]))
        assert ("gradalign/weight" in ran.stdout) == (command[1:] == [])
    assert [told[0]["arm"], told[1]["arm"]] == ["weight", "plain"]
    assert told[0]["before"] == told[1]["before"]


def test_the_block_of_the_page_runs(base, scorer, run_id, tmp_path):
    like = make_trainer(base, tmp_path, scorer.url, run_id, max_steps=1)
    world = make_world("inverted", seed=3, pool=96, validation=8, heldout=24)
    code = block("python").replace("http://127.0.0.1:8000", scorer.url).replace('"my-run"', repr(run_id))
    # A model in hand brings its tokenizer by its folder, as a hub id does.
    scope = {
        "model": str(base),
        "args": like.args,
        "dataset": rows(world.pool),
        "trusted": rows(world.validation, "validation"),
        "reward": graded,
    }
    exec(code, scope)
    assert scope["trainer"].state.global_step == 1
    with Client(scorer.url, run_id=run_id) as client:
        assert client.run().problems == 4
        client.delete_run()

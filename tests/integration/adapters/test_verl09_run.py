"""Whole runs of verl 0.9 on the CPU, two ranks under Ray, a real scorer: weighed, chosen, resumed, and without a scorer.

What generates is a stand-in, since verl's rollout engines need a GPU; see `verl09run.py`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from verl09here import needs_verl

from gradalign import Client

needs_verl()

pytestmark = [pytest.mark.long, pytest.mark.timeout(2400)]  # half a minute a run where nothing else runs
SUPPORT = Path(__file__).parents[2] / "support"


def train(folder, steps, *options, **environment):
    """Run; what each step wrote, and all that was said."""
    path = os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")])
    modules = "verl09kit,gradalign_trainer.adapters.verl.v1.plugin"
    script = (
        "import os, sys, verl09kit, verl09run; folder = sys.argv[1];"
        "os.path.exists(folder + '/model') or verl09kit.save_model(folder + '/model');"
        "verl09run.write_problems(folder); verl09run.main(*sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(folder), str(steps), *options],
        env={**os.environ, "PYTHONPATH": path, "VERL_USE_EXTERNAL_MODULES": modules, **environment},
        capture_output=True,
        text=True,
        timeout=1100,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-4000:]
    lines = [line.partition(" ") for line in done.stdout.splitlines()]
    found = [json.loads(text) for word, _, text in lines if word == "STEP"]
    ends = [json.loads(text) for word, _, text in lines if word == "DONE"]
    assert len(ends) == 1
    return found, ends[0]["prompts"], said


def options(scorer_url, run_id):
    return [
        f"+gradalign.scorer_url={scorer_url}",
        f"+gradalign.run_id={run_id}",
        "+gradalign.trusted_sources=[trusted]",
        "+gradalign.refresh_every=3",
        "+gradalign.retries=0",
        "trainer.save_freq=2",
    ]


def test_a_run_is_weighed_chosen_and_resumed(tmp_path, scorer, run_id):
    given = options(scorer.url, run_id)
    steps, prompts, said = train(tmp_path, 4, *given)
    assert "GradAlign is off" not in said
    assert len(steps) == 4
    for step in steps:
        trusted = [row for row in step["rows"] if row[0] == "trusted"]
        assert all(row[2:] == [0.0, 0] for row in trusted)  # in no term of the loss
    assert [any(row[0] == "trusted" for row in step["rows"]) for step in steps] == [True, False, False, True]
    last = steps[-1]["figures"]
    assert last["gradalign/fallbacks"] <= 1  # none, but where the first validation problem had no signal
    assert 0 < last["gradalign/weight"] < 1
    assert last["gradalign/quotient"] == pytest.approx(1.0, abs=0.1)
    with Client(scorer.url, run_id=run_id) as client:
        state = client.run()
        assert (state.kind, state.policy_version) == ("products", 3)
        scored = {problem.problem_id for problem in client.problems(limit=100).problems}
    assert scored <= set(prompts)
    assert len(scored) >= 6
    resumed, _, said = train(tmp_path, 6, *given, "+gradalign.train_on_trusted=true")
    assert "global_step_4" in said
    assert "is not at the scorer" not in said
    assert len(resumed) == 2
    trusted = [row for row in resumed[0]["rows"] if row[0] == "trusted"]
    assert trusted  # the engine's validation gradient went with the process
    assert all(row[3] for row in trusted)
    assert any(row[2] for row in trusted)
    with Client(scorer.url, run_id=run_id) as client:
        assert client.run().policy_version == 5
        assert client.run().epoch == state.epoch + 1


def test_without_a_scorer_and_without_ids_training_goes_on(tmp_path):
    steps, _, said = train(tmp_path, 2, *options("http://127.0.0.1:9", "a"), DROP="extra_info")
    assert len(steps) == 2
    assert said.count("The scorer at http://127.0.0.1:9 is away") >= 1
    assert "the columns extra_info of the batch did not arrive" in said
    assert "GradAlign is off from here on" in said
    assert not any(row[0] == "trusted" for row in steps[1]["rows"])  # what cannot be told apart is drawn no more

"""What `gradalign status`, `top` and `/metrics` say of a run of pass rates: what is known, and nothing of gradients."""

import json
import os
import subprocess
import sys

import pytest

from gradalign import Client


def gradalign(*arguments):
    command = [sys.executable, "-m", "gradalign", *arguments]
    wide = {**os.environ, "COLUMNS": "120"}
    return subprocess.run(command, env=wide, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def run(scorer, run_id):
    with Client(scorer.url, run_id=run_id) as client:
        for version in range(3):
            ids = [f"p{version}", "always"]
            client.score(ids, pass_rates=[0.5, 1.0], rollouts=[8, 8], policy_version=version)
            client.select(1, policy_version=version)
        yield client


def test_status_says_how_many_had_no_signal(scorer, run):
    done = gradalign("status", run.run_id, "--url", scorer.url, "--json")
    assert done.returncode == 1
    (state,) = json.loads(done.stdout)["runs"]
    assert (state["kind"], state["problems"], state["coherence"]) == ("pass_rates", 4, None)
    assert [warning["message"] for warning in state["warnings"]] == ["50% of the problems had no signal"]


def test_top_shows_pass_rates_and_leaves_out_gradients(scorer, run):
    done = gradalign("top", run.run_id, "--url", scorer.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert "strategy posterior, by pass rates" in done.stdout
    assert "mean pass rate" in done.stdout
    assert "coherence" not in done.stdout
    assert "median alignment" not in done.stdout
    line, *_ = [text for text in done.stdout.splitlines() if text.startswith("always")]  # in both tables
    assert "1.000" in line
    assert run.run_id[:8] in gradalign("top", "--url", scorer.url).stdout


def test_metrics_have_what_there_is(scorer, run):
    with scorer.http() as http:
        lines = [line for line in http.get("/metrics").text.splitlines() if f'run="{run.run_id}"' in line]
    named = {line.partition("{")[0] for line in lines}
    assert {"gradalign_run_problems", "gradalign_pass_rate_mean"} <= named
    assert not {"gradalign_validation_coherence", "gradalign_alignment_median"} & named

"""verl 0.9's registry, trainer base, dataset and data loader with the plugin in them, in a process of their own."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from verl09here import needs_verl

needs_verl()

SUPPORT = Path(__file__).parents[2] / "support"


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verl09")
    path = os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")])
    # The package need not be installed: its plugin is imported as verl imports those of others.
    modules = "verl09kit,gradalign_trainer.adapters.verl.v1.plugin"
    script = (
        "import sys, verl09kit, verl09run, verl09trainer;"
        "verl09kit.save_model(sys.argv[1] + '/model'); verl09run.write_problems(sys.argv[1]);"
        "verl09trainer.main(sys.argv[1])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(folder)],
        env={**os.environ, "PYTHONPATH": path, "VERL_USE_EXTERNAL_MODULES": modules},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("SEEN ")]
    assert lines, done.stderr[-3000:]
    return json.loads(lines[0].removeprefix("SEEN "))


def test_the_registry_has_our_trainers_beside_verl_s(seen):
    ours = ["gradalign_colocate_async", "gradalign_sync"]
    assert seen["registry"] == sorted([*ours, "colocate_async", "separate_async", "sync"])
    assert seen["mode"] == ["sync", "sync"]
    assert seen["async mode"] == "colocate_async"


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("settings", "add +gradalign.scorer_url=http://HOST:8000"),
        ("strategy", "Set actor_rollout_ref.actor.strategy=fsdp2"),
        ("ulysses", "ulysses_sequence_parallel_size = 2: it gives the same rows to several ranks"),
        ("untrusted", "no problem of data.train_files is trusted"),
        ("unknown", "no problem of data.train_files is trusted"),
        ("only trusted", "expected candidates beside them to train on"),
    ],
)
def test_what_cannot_run_is_refused_before_any_worker_starts(seen, case, words):
    assert words in seen["refused"][case]


def test_validation_problems_join_batches_and_no_other_process_draws_ahead(seen):
    assert seen["workers"] == 0
    trusted = [[mark == "trusted" for _, mark in batch] for batch in seen["drawn"]]
    assert [sum(batch) for batch in trusted] == [1, 0, 1]
    candidates = Counter(name for batch in seen["drawn"] for name, mark in batch if not mark)
    assert len(candidates) == 10  # all different, in the order of an epoch
    assert max(candidates.values()) == 1


def test_a_resumed_loader_goes_on(seen):
    assert seen["again"] == seen["straight"]


def test_rows_drawn_one_by_one_are_those_of_whole_batches(seen):
    marks = [mark for ((_, mark),) in ([row] for row in seen["one by one"])]
    assert marks[0] == "trusted"
    assert Counter(marks)["trusted"] == 1


def test_actors_are_ours(seen):
    assert seen["worker"]
    assert all(seen["worker"])


def test_a_scorer_that_is_away_is_said_once_and_takes_no_rows(seen):
    batches, said = seen["away"]
    assert len([line for line in said if "The scorer at http://127.0.0.1:9 is away" in line]) == 1
    assert [sum(mark == "trusted" for _, mark in batch) for batch in batches] == [1, 0, 0]  # none to measure in vain


@pytest.mark.parametrize(
    ("found", "asked"),
    [
        ("new", [["refresh", 2.0], ["score", ["a"]], ["fallback"]]),
        ("without a signal", [["refresh", 0.0], ["score", ["a"]], ["fallback"]]),
        ("candidates failed", [["refresh", 2.0], ["fallback"]]),  # what comes next is measured with the new one
        ("none to score against", [["fallback"]]),  # and nothing is measured
        ("validation failed", [["unmeasured"], ["fallback"]]),
    ],
)
def test_the_scorer_hears_of_every_validation_gradient_that_the_engine_takes(seen, found, asked):
    assert seen["asked"][found] == asked


def test_a_fault_of_measuring_is_said_once_while_it_lasts(seen):
    assert len(seen["faults"]) == 2
    assert "of those to come while this lasts: a" in seen["faults"][0]


def test_a_failure_is_said_once_and_switches_us_off(seen):
    assert seen["failed"] == [None, None, []]
    assert not seen["joins"]
    assert len(seen["off"]) == 1
    assert "GradAlign is off from here on, and training goes on as verl's own: division by zero" in seen["off"][0]

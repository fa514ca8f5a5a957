"""Whole training runs: a real model, a real scorer process, a real store."""

import logging
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from gradalign import Client, GradAlignError
from gradalign.errors import Fenced


def problems_of(url, run_id):
    with Client(url, run_id=run_id) as client:
        return {row.problem_id: row for row in client.problems(limit=1000).problems}


def weights(result):
    return load_file(result.checkpoint / "model.safetensors")


def assert_same_weights(left, right):
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_every_selection_comes_from_the_scorer(scorer, play, run_id):
    result, seen = play(scorer.url, evaluate_every=2)
    assert [report.round_number for report in result.reports] == [0, 1, 2]
    assert [report.pass_rate is not None for report in result.reports] == [True, False, True]
    assert result.fallbacks == 0
    assert seen.stages == ["evaluate", *["validation", "score", "update"] * 2, "evaluate"]
    last = result.reports[-1].figures
    assert last["scored"] == 24
    assert 0 < last["scorer_seconds"] < last["round_seconds"]
    assert last["selected_alignment"] > last["alignment"]
    rows = problems_of(scorer.url, run_id)
    assert sum(row.times_scored for row in rows.values()) == 2 * 24
    assert sum(row.times_selected for row in rows.values()) == 2 * 8
    with Client(scorer.url, run_id=run_id) as client:
        kinds = [record.kind for record in client.rounds()]
        assert kinds == ["refresh", "score"] * 2
        assert client.run().policy_version == 2  # of the second round's scores, after two updates
    assert (result.checkpoint / "state.json").exists()


def test_random_choice_needs_no_scorer(play):
    result, seen = play(None, strategy="random")
    assert "score" not in seen.stages
    assert result.fallbacks == 0


@pytest.mark.parametrize("exact", [False, True], ids=["sketched", "exact"])
def test_a_run_that_was_cut_off_resumes_bit_for_bit(scorer, play, run_id, exact, tmp_path):
    settings = {"rounds": 4, "refresh_every": 3, "checkpoint_every": 2, "exact_alignments": exact, "evaluate_every": 4}
    unbroken, _ = play(scorer.url, "unbroken", run_id=f"{run_id}-a", **settings)
    cut, _ = play(scorer.url, "cut", run_id=f"{run_id}-b", **{**settings, "rounds": 3})
    # The third round was scored and trained on, and its checkpoint never written.
    shutil.rmtree(cut.checkpoint)
    resumed, seen = play(scorer.url, "cut", run_id=f"{run_id}-b", resume=True, **settings)
    assert [report.round_number for report in seen.reports] == [3, 4]
    assert_same_weights(weights(unbroken), weights(resumed))
    assert resumed.reports[-1].pass_rate == unbroken.reports[-1].pass_rate
    assert resumed.reports[-1].figures["alignment"] == unbroken.reports[-1].figures["alignment"]
    assert problems_of(scorer.url, f"{run_id}-a") == problems_of(scorer.url, f"{run_id}-b")
    if exact:
        assert unbroken.reports[-1].figures["reliability"] == 1


@pytest.mark.slow
def test_training_goes_on_while_the_scorer_is_dead_and_takes_it_back(start_scorer, play, run_id, caplog):
    caplog.set_level(logging.WARNING)
    first = start_scorer()
    port = first.url.rpartition(":")[2]
    lives = [first]

    def act(stage, rounds_reported):
        if (stage, rounds_reported) == ("update", 2):
            lives[-1].kill()
        if (stage, rounds_reported) == ("update", 3):
            lives.append(start_scorer("--port", port))

    result, seen = play(first.url, act=act, rounds=4)
    assert len(lives) == 2
    assert result.fallbacks == 1
    assert [report.figures.get("fallback") for report in seen.reports[1:]] == [0, 0, 1, 0]
    assert "The scorer is away, training goes on without it" in caplog.text
    assert "is back" in caplog.text
    rows = problems_of(first.url, run_id)
    assert sum(row.times_scored for row in rows.values()) == 3 * 24


def test_a_scorer_that_never_was_there_costs_no_round(play, caplog):
    caplog.set_level(logging.WARNING)
    result, _ = play("http://127.0.0.1:9", scorer_retries=0)
    assert result.fallbacks == 2
    assert "Round 2 chooses at random: the scorer at http://127.0.0.1:9 is away (2 such choices so far)." in caplog.text
    assert "has no curriculum snapshot" in caplog.text


def test_a_store_that_forgot_the_run_gets_a_new_validation_gradient(scorer, play, run_id, caplog):
    caplog.set_level(logging.WARNING)

    def act(stage, rounds_reported):
        if (stage, rounds_reported) == ("update", 1):
            with Client(scorer.url, run_id=run_id) as client:
                client.delete_run()

    result, seen = play(scorer.url, act=act, rounds=3, refresh_every=3)
    assert "The validation gradient will be refreshed" in caplog.text
    assert result.fallbacks == 1
    assert [report.figures["fallback"] for report in seen.reports[1:]] == [0, 1, 0]


def test_validation_problems_without_a_signal_do_not_stop_the_run(scorer, play, data, caplog):
    caplog.set_level(logging.WARNING)

    def reward(problem, text):
        return 1.0 if problem.source.startswith("validation") else data.reward(problem, text)

    result, _ = play(scorer.url, rounds=1, data=replace(data, reward=reward))
    assert result.fallbacks == 1
    assert "None of the 8 validation problems has a signal at policy version 0" in caplog.text


@pytest.mark.parametrize("strategy", ["cosine", "accgreedy"])
def test_weighting_trains_on_every_group_that_was_generated(scorer, play, run_id, strategy):
    result, seen = play(scorer.url, mode="weight", strategy=strategy, refresh_every=2)
    assert seen.stages[:3] == ["evaluate", "validation", "update"]
    assert "score" not in seen.stages
    assert 0 < result.reports[-1].figures["weight"] < 1
    rows = problems_of(scorer.url, run_id)
    assert sum(row.times_scored for row in rows.values()) == 2 * 2 * 4


def test_a_predecessor_that_still_runs_is_fenced_off(scorer, play, run_id):
    def act(stage, rounds_reported):
        if (stage, rounds_reported) == ("update", 1):
            with Client(scorer.url, run_id=run_id, epoch=2) as heir:
                heir.snapshot("taken-over")

    with pytest.raises(Fenced, match="has taken this run over"):
        play(scorer.url, act=act)


def test_an_output_folder_of_an_earlier_run_is_refused(play, run_id):
    play(None, strategy="random", rounds=1)
    with pytest.raises(GradAlignError, match=r"holds checkpoints of an earlier run.*--resume"):
        play(None, strategy="random", rounds=1)
    with pytest.raises(GradAlignError, match="Resume with the configuration it was made with"):
        play(None, strategy="random", rounds=2, resume=True, run_id=f"{run_id}-other")


@pytest.mark.parametrize("exact", [False, True], ids=["sketched", "exact"])
def test_updates_can_score_what_they_train_on_and_train_the_same(scorer, play, run_id, exact):
    settings = {"exact_alignments": exact, "batch_problems": 12}  # 8 are selected: some come twice in a batch
    plain, _ = play(scorer.url, "plain", run_id=f"{run_id}-a", **settings)
    told, _ = play(scorer.url, "told", run_id=f"{run_id}-b", score_updates=True, **settings)
    for name, weight in weights(plain).items():
        torch.testing.assert_close(weights(told)[name], weight, rtol=1e-3, atol=1e-5)
    rows = problems_of(scorer.url, f"{run_id}-b").values()
    assert sum(row.times_scored for row in rows) == 2 * (24 + 2 * 8)
    assert sum(row.times_selected for row in rows) == 2 * 8
    with Client(scorer.url, run_id=f"{run_id}-b") as client:
        assert client.run().policy_version == 3

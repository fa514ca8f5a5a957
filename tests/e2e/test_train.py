"""Whole training runs: a real model, a real scorer process, a real store."""

import logging
import shutil
from dataclasses import replace

import pytest
import torch
from trainkit import ALIGNMENTS, assert_same_weights, problems_of, weights

from gradalign import Client, GradAlignError
from gradalign.errors import Fenced


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


def test_sketches_may_travel_as_int8(scorer, play, run_id):
    result, seen = play(scorer.url, sketch_dtype="int8")
    assert result.fallbacks == 0
    last = result.reports[-1].figures
    assert last["selected_alignment"] > last["alignment"]
    assert sum(row.times_scored for row in problems_of(scorer.url, run_id).values()) == 2 * 24
    assert "score" in seen.stages


def test_products_rank_as_exact_gradients_do(scorer, play, run_id):
    """The first round's rollouts are the same, so its alignments are of the same gradients, in another unit."""
    settings = {"rounds": 1, "evaluate_every": 1}
    by_alignment = {}
    for alignment in ("exact", "forward"):
        name = f"{run_id}-{alignment}"
        play(scorer.url, alignment, run_id=name, alignment=alignment, strategy="dot", **settings)
        by_alignment[alignment] = problems_of(scorer.url, name)
        with Client(scorer.url, run_id=name) as client:
            state = client.run()
    assert (state.kind, state.alignment_kind) == ("products", "product")
    assert state.products_quotient == pytest.approx(1.0, abs=0.02)
    exact, forward = by_alignment["exact"], by_alignment["forward"]
    assert exact.keys() == forward.keys()
    dots = torch.tensor([[exact[i].priority, forward[i].alignment] for i in exact])
    assert torch.corrcoef(dots.T)[0, 1] > 0.99


@pytest.mark.parametrize("strategy", ["shrunken", "accgreedy", "cosine_accuracy"])
def test_strategies_of_products(scorer, play, run_id, strategy):
    result, _ = play(scorer.url, alignment="forward", strategy=strategy)
    assert result.fallbacks == 0
    rows = problems_of(scorer.url, run_id)
    assert sum(row.times_selected for row in rows.values()) == 2 * 8


def test_random_choice_needs_no_scorer(play):
    result, seen = play(None, strategy="random")
    assert "score" not in seen.stages
    assert result.fallbacks == 0
    assert [report.figures.get("rollouts") for report in seen.reports] == [None, 2 * 4 * 4, 2 * 2 * 4 * 4]


def test_every_rollout_is_counted_by_what_it_is_for(scorer, play):
    _, seen = play(scorer.url)
    costs = [
        {name: value for name, value in report.figures.items() if "rollouts" in name} for report in seen.reports[1:]
    ]
    one = {"pool_rollouts": 24 * 4, "validation_rollouts": 8 * 6, "update_rollouts": 2 * 4 * 4, "rollouts": 176}
    assert costs == [one, {name: 2 * count for name, count in one.items()}]
    last = seen.reports[-1].figures
    assert last["seconds"] == pytest.approx(sum(report.figures["round_seconds"] for report in seen.reports[1:]))
    assert last["cpu_seconds"] > 0


@pytest.mark.parametrize("strategy", ["accgreedy", "learnalign"])
def test_a_strategy_that_looks_at_candidates_alone_spends_nothing_on_validation(scorer, play, strategy):
    result, seen = play(scorer.url, strategy=strategy)
    assert "validation" not in seen.stages
    assert result.fallbacks == 0
    last = seen.reports[-1].figures
    assert (last["validation_rollouts"], last["scored"]) == (0, 24)


def test_the_oracle_trains_on_good_problems_alone(play, data):
    _, seen = play(None, strategy="oracle")
    assert [report.figures["trained_good"] for report in seen.reports[1:]] == [1.0, 1.0]
    bad = [problem for problem in data.pool if not problem.extra["good"]]
    with pytest.raises(GradAlignError, match=f"none of the {len(bad)} problems of the pool has it"):
        play(None, "blind", strategy="oracle", data=replace(data, pool=bad))


def test_dynamic_sampling_fills_the_batch_with_groups_that_have_a_signal(play, data):
    dull = {problem.problem_id for problem in data.pool[::2]}
    half = replace(data, reward=lambda p, t: 1.0 if p.problem_id in dull else data.reward(p, t))
    _, seen = play(None, strategy="random", mode="dynamic", data=half)
    for report in seen.reports[1:]:
        assert 0 < report.figures["kept"] <= 1
    spent = seen.reports[-1].figures["update_rollouts"]
    trained = 2 * 2 * 4 * 4
    assert spent > trained
    assert spent == pytest.approx(trained / (sum(report.figures["kept"] for report in seen.reports[1:]) / 2), rel=0.5)
    _, lenient = play(None, "lenient", strategy="random", mode="dynamic", data=replace(data, reward=lambda p, t: 1.0))
    assert lenient.reports[-1].figures["update_rollouts"] == 10 * trained  # it gives up, and trains on the last draw


def test_trusted_problems_can_join_each_batch(play):
    alone, seen = play(None, "alone", strategy="random")
    joined, more = play(None, "joined", strategy="random", batch_validation=8)
    assert more.reports[-1].figures["update_rollouts"] == seen.reports[-1].figures["update_rollouts"] * 3
    assert any(not torch.equal(weights(alone)[name], weight) for name, weight in weights(joined).items())


def test_a_run_stops_behind_the_round_that_spends_its_rollouts(play):
    result, seen = play(None, strategy="random", rounds=9, stop_at_rollouts=33, evaluate_every=5)
    assert [report.round_number for report in seen.reports] == [0, 1, 2]
    assert seen.reports[-1].pass_rate is not None
    assert result.checkpoint.name == "round-000002"
    resumed, again = play(
        None, strategy="random", rounds=9, stop_at_rollouts=70, evaluate_every=5, resume=True,
    )  # fmt: skip
    assert [report.round_number for report in again.reports] == [3]
    assert resumed.reports[-1].figures["rollouts"] == 96


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_a_run_that_was_cut_off_resumes_bit_for_bit(scorer, play, run_id, alignment):
    settings = {"rounds": 4, "refresh_every": 3, "checkpoint_every": 2, "alignment": alignment, "evaluate_every": 4}
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
    if alignment == "exact":
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
    assert result.reasons.told() == "2 rounds chose at random (2: the scorer was away)"
    assert "Round 2 chooses at random: the scorer at http://127.0.0.1:9 is away (2 such choices so far)." in caplog.text
    assert "has no curriculum snapshot" in caplog.text


@pytest.mark.parametrize("alignment", ["capture", "forward"])
def test_a_store_that_forgot_the_run_gets_a_new_validation_gradient(scorer, play, run_id, caplog, alignment):
    caplog.set_level(logging.WARNING)

    def act(stage, rounds_reported):
        if (stage, rounds_reported) == ("update", 1):
            with Client(scorer.url, run_id=run_id) as client:
                client.delete_run()

    result, seen = play(scorer.url, act=act, rounds=3, refresh_every=3, alignment=alignment)
    assert "The validation gradient will be refreshed" in caplog.text
    assert result.fallbacks == 1
    assert [report.figures["fallback"] for report in seen.reports[1:]] == [0, 1, 0]
    assert dict(result.reasons) == {"unfit": 1}


@pytest.mark.parametrize("alignment", ["capture", "forward"])
def test_validation_problems_without_a_signal_do_not_stop_the_run(scorer, play, data, caplog, alignment):
    caplog.set_level(logging.WARNING)

    def reward(problem, text):
        return 1.0 if problem.source.startswith("validation") else data.reward(problem, text)

    result, _ = play(scorer.url, rounds=2, data=replace(data, reward=reward), alignment=alignment)
    assert result.fallbacks == 2
    assert result.reasons.told() == "2 rounds chose at random (2: no validation problem had a signal)"
    assert "Round 1 chooses at random: no validation problem had a signal (1 such choice so far)." in caplog.text
    assert caplog.text.count("None of the 8 validation problems has a signal at policy version 0") == 1
    assert caplog.text.count("None of the 8 validation problems") == 1  # not again in the second round


def test_another_trainer_s_gradient_is_not_ranked_against(scorer, play, run_id, caplog):
    """The scorer holds a newer validation gradient than the products were taken with."""
    caplog.set_level(logging.WARNING)

    def act(stage, rounds_reported):
        if (stage, rounds_reported) == ("score", 2):
            with Client(scorer.url, run_id=run_id, epoch=1) as client:
                client.refresh_validation(["other"], products=[[1.0]], lengths=1.0, policy_version=2)

    _, seen = play(scorer.url, act=act, rounds=3, refresh_every=3, alignment="forward")
    assert [report.figures["fallback"] for report in seen.reports[1:]] == [0, 1, 0]
    assert "The validation gradient will be refreshed: products_version is" in caplog.text


def test_a_run_of_sketches_takes_no_products(scorer, play, run_id):
    play(scorer.url, "sketches", rounds=1)
    with pytest.raises(GradAlignError, match="kind"):
        play(scorer.url, "products", rounds=1, alignment="forward")


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


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_updates_can_score_what_they_train_on_and_train_the_same(scorer, play, run_id, alignment):
    settings = {"alignment": alignment, "batch_problems": 12}  # 8 are selected: some come twice in a batch
    plain, _ = play(scorer.url, "plain", run_id=f"{run_id}-a", **settings)
    told, _ = play(scorer.url, "told", run_id=f"{run_id}-b", score_updates=True, **settings)
    for name, weight in weights(plain).items():
        torch.testing.assert_close(weights(told)[name], weight, rtol=1e-3, atol=1e-5)
    rows = problems_of(scorer.url, f"{run_id}-b").values()
    assert sum(row.times_scored for row in rows) == 2 * (24 + 2 * 8)
    assert sum(row.times_selected for row in rows) == 2 * 8
    with Client(scorer.url, run_id=f"{run_id}-b") as client:
        assert client.run().policy_version == 3

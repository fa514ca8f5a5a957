"""Whole training runs that choose by pass rates alone: no gradient and no rollout is spent on the choice."""

import pytest
from trainkit import assert_same_weights, weights

from gradalign import Client
from gradalign_trainer.policy.gradients import GradientMeter

POSTERIOR = {"strategy": "posterior"}


def state_of(url, run_id):
    """Problem -> (belief, times scored, pass rate), and the kinds of the rounds."""
    with Client(url, run_id=run_id) as client:
        rows = [client.problem(row.problem_id) for row in client.problems(limit=1000).problems]
        kinds = [record.kind for record in client.rounds(limit=1000)]
        return {row.problem_id: (row.belief, row.times_scored, row.pass_rate) for row in rows}, kinds


def test_it_costs_what_random_choice_costs_and_measures_no_gradient(scorer, play, run_id, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a gradient was measured")

    monkeypatch.setattr(GradientMeter, "measure", refuse)
    result, seen = play(scorer.url, **POSTERIOR)
    assert result.fallbacks == 0
    assert seen.stages == ["evaluate", "update", "evaluate", "update", "evaluate"]
    last = seen.reports[-1].figures
    assert (last["pool_rollouts"], last["validation_rollouts"], last["update_rollouts"]) == (0, 0, 2 * 2 * 4 * 4)
    assert last["scorer_seconds"] > 0
    rows, kinds = state_of(scorer.url, run_id)
    assert kinds == ["score", "score", "select", "score", "score"]
    assert sum(scored for _, scored, _ in rows.values()) == 2 * 2 * 4
    with Client(scorer.url, run_id=run_id) as client:
        state = client.run()
    assert (state.kind, state.strategy, state.validation_version) == ("pass_rates", "posterior", 0)
    for (alpha, beta), scored, rate in rows.values():
        counted = sum(0.5**age * 4 for age in range(scored))
        assert alpha + beta == pytest.approx(2 + counted)
        if scored == 1:
            assert alpha == pytest.approx(1 + 4 * rate, rel=1e-6)


def test_a_run_that_is_resumed_ends_where_an_unbroken_one_does(scorer, play, run_id):
    settings = {**POSTERIOR, "rounds": 3, "checkpoint_every": 1, "evaluate_every": 3}
    whole, _ = play(scorer.url, "whole", **settings)
    wanted = state_of(scorer.url, run_id)
    with Client(scorer.url, run_id=run_id) as client:
        client.delete_run()
    play(scorer.url, "broken", **{**settings, "rounds": 2})
    with Client(scorer.url, run_id=run_id) as client:  # something after the checkpoint, which a resume undoes
        client.score(["a stranger"], pass_rates=[0.5], rollouts=[4], policy_version=9)
    resumed, _ = play(scorer.url, "broken", resume=True, **settings)
    assert_same_weights(weights(whole), weights(resumed))
    found = state_of(scorer.url, run_id)
    assert found[0] == wanted[0]
    assert [kind for kind in found[1] if kind != "restore"] == wanted[1]


def test_without_the_scorer_it_goes_on_at_random_and_says_so(play):
    result, seen = play("http://127.0.0.1:9", scorer_retries=0, **POSTERIOR)
    assert result.fallbacks == 2
    assert result.reasons["away"] == 2
    assert seen.reports[-1].figures["fallback"] == 1.0
    assert seen.reports[-1].figures["update_rollouts"] == 2 * 2 * 4 * 4


def test_trusted_problems_that_join_a_batch_are_no_outcomes_of_the_pool(scorer, play, run_id, data):
    play(scorer.url, batch_validation=2, **POSTERIOR)
    rows, _ = state_of(scorer.url, run_id)
    assert set(rows) <= {problem.problem_id for problem in data.pool}
    assert sum(scored for _, scored, _ in rows.values()) == 2 * 2 * 4

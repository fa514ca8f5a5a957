"""Training runs that weigh what they generate: a real model, a real scorer process, a real store."""

import logging
import shutil

import pytest
import torch
from trainkit import ALIGNMENTS, assert_same_weights, problems_of, weights

from gradalign import Client, Projection
from gradalign.forward import Direction
from gradalign_trainer.policy.products import ProductMeter

IN_BATCH = {
    "mode": "weight",
    "proposals": True,
    "refresh_every": 2,
    "validation_subset": 6,
    "validation_rollouts": 16,
    "validation_decay": 0.7,
    "train_on_validation": True,
    "evaluate_every": 4,
}


def test_every_rollout_can_have_a_weight_of_its_own(scorer, play, run_id):
    settings = {"mode": "weight", "alignment": "forward", "rounds": 1}
    groups, _ = play(scorer.url, "groups", run_id=f"{run_id}-g", **settings)
    rollouts, seen = play(scorer.url, "rollouts", run_id=f"{run_id}-r", rollout_weights=True, **settings)
    assert seen.reports[-1].figures["fallback"] == 0
    assert any(not torch.equal(weights(groups)[name], weight) for name, weight in weights(rollouts).items())


@pytest.mark.parametrize("strategy", ["cosine", "accgreedy"])
def test_weighting_trains_on_every_group_that_was_generated(scorer, play, run_id, strategy):
    result, seen = play(scorer.url, mode="weight", strategy=strategy, refresh_every=2)
    assert seen.stages[:3] == ["evaluate", "validation", "update"]
    assert "score" not in seen.stages
    assert 0 < result.reports[-1].figures["weight"] < 1
    rows = problems_of(scorer.url, run_id)
    assert sum(row.times_scored for row in rows.values()) == 2 * 2 * 4


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_weighting_with_proposals_resumes_bit_for_bit(scorer, play, run_id, alignment):
    settings = {**IN_BATCH, "rounds": 4, "checkpoint_every": 2, "alignment": alignment}
    unbroken, seen = play(scorer.url, "unbroken", run_id=f"{run_id}-a", **settings)
    assert unbroken.fallbacks == 0
    last = seen.reports[-1].figures
    assert (last["validation_rollouts"], last["update_rollouts"]) == (2 * 6 * 16, 4 * 2 * 4 * 4)
    with Client(scorer.url, run_id=f"{run_id}-a") as client:
        kinds = [record.kind for record in client.rounds()]
    assert kinds == (["refresh"] + ["select", "score"] * 4) * 2
    cut, _ = play(scorer.url, "cut", run_id=f"{run_id}-b", **{**settings, "rounds": 3})
    shutil.rmtree(cut.checkpoint)
    resumed, _ = play(scorer.url, "cut", run_id=f"{run_id}-b", resume=True, **settings)
    assert_same_weights(weights(unbroken), weights(resumed))
    assert problems_of(scorer.url, f"{run_id}-a") == problems_of(scorer.url, f"{run_id}-b")


def test_proposals_of_a_scorer_that_is_away_are_drawn_here(play):
    result, seen = play("http://127.0.0.1:9", scorer_retries=0, **IN_BATCH)
    assert result.fallbacks == 4
    assert seen.reports[-1].figures["update_rollouts"] == 2 * 2 * 4 * 4


def test_a_kept_gradient_that_is_not_the_scorer_s_begins_anew(scorer, play, run_id, caplog):
    caplog.set_level(logging.WARNING)

    def act(stage, rounds_reported):
        if (stage, rounds_reported) == ("update", 2):
            with Client(scorer.url, run_id=run_id, epoch=1) as client:
                client.delete_run()
                client.refresh_validation(
                    ["other"], torch.ones(1, 512), policy_version=0, projection=client_projection[0]
                )

    client_projection = []

    def remember(stage, rounds_reported):
        if stage == "update" and rounds_reported == 1:
            with Client(scorer.url, run_id=run_id) as client:
                client_projection.append(Projection.from_map(client.run().projection))
        act(stage, rounds_reported)

    play(scorer.url, act=remember, **{**IN_BATCH, "rounds": 3, "exact_alignments": True, "refresh_every": 1})
    assert "The validation gradient begins anew: decay_version is" in caplog.text


@pytest.mark.parametrize("mode", ["choose", "weight"])
def test_products_that_do_not_add_up_stop_no_training(scorer, play, run_id, monkeypatch, caplog, mode):
    taken = []
    logprobs = ProductMeter._logprobs

    def wrong_for_once(meter, rollouts):
        return logprobs(meter, rollouts) * (5.0 if len(taken) == 2 else 1.0)

    def counted(direction, **settings):
        taken.append(1)
        return take(direction, **settings)

    take = Direction.take
    monkeypatch.setattr(ProductMeter, "_logprobs", wrong_for_once)
    monkeypatch.setattr(Direction, "take", counted)
    result, seen = play(scorer.url, mode=mode, alignment="forward", rounds=3)
    assert [report.figures["fallback"] for report in seen.reports[1:]] == [0, 1, 0]
    assert result.reasons.keys() == {"unmeasured"}
    assert "taken anew" in caplog.text

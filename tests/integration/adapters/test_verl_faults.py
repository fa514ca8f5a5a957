"""The verl adapter where something is amiss: training goes on, and what is lost is said."""

import logging

import torch
from verlkit import Actor, Batch, columns, model, pool

from gradalign import Client
from gradalign.sketch import Sketcher
from gradalign_trainer.adapters.verl.capture import ActorCapture, captured_update

AWAY = {"url": "http://127.0.0.1:9", "retries": 0}


def test_sequence_parallelism_is_refused_once_and_training_goes_on(settings, caplog):
    settings()
    actor, batch = Actor(model()), Batch(*columns([("a", False)], 2))
    actor.use_ulysses_sp = True
    before = batch.batch["advantages"].clone()
    with caplog.at_level(logging.ERROR):
        captured_update(actor, batch)
        captured_update(actor, batch)
    assert caplog.text.count("set actor_rollout_ref.actor.ulysses_sequence_parallel_size=1") == 1
    assert torch.equal(batch.batch["advantages"], before)


def test_a_problem_whose_gradient_is_not_finite_counts_as_no_signal(settings, close, caplog):
    policy, batch = model(), Batch(*columns([("a", False), ("b", False)], 4))
    capture = close(ActorCapture(Actor(policy), settings()))
    right = capture.measure(batch).sketches
    batch.batch["advantages"][:4] *= torch.inf
    with caplog.at_level(logging.WARNING):
        found = capture.measure(batch)
    assert "A problem counts as no signal: the gradient of" in caplog.text
    assert not found.sketches[0].any()
    torch.testing.assert_close(found.sketches[1], right[1])


def test_a_worker_that_is_behind_its_run_asks_where_that_stands(settings, scorer, run_id, close, caplog):
    capture = close(ActorCapture(Actor(model()), settings(strategy="norm")))
    batch = Batch(*columns([("a", False), ("b", False)], 4))
    capture(batch)
    with Client(scorer.url, run_id=run_id) as client:
        ahead = {"policy_version": 40, "projection": Sketcher(model(), dim=256).projection, "strategy": "norm"}
        client.score(["c"], torch.ones(1, 256), **ahead)
        with caplog.at_level(logging.WARNING):
            capture(batch)
        assert "The scores of batch 2 are lost" in caplog.text
        capture(batch)
        assert client.run().policy_version == 41
    assert (capture.steps, capture.failed) == (3, 1)


def test_batches_without_rewards_have_no_solved_rollouts(settings, close):
    batch = Batch(*columns([("a", False), ("b", True)], 3))
    del batch.batch["token_level_scores"]
    assert close(ActorCapture(Actor(model()), settings())).measure(batch).pass_rates == [0.0, 0.0]


def test_a_checkpoint_without_a_scorer_is_one_without_a_curriculum(settings, make_sampler, caplog):
    settings(**AWAY)
    sampler = make_sampler(pool(8), 4)
    rows = iter(sampler)
    next(rows)
    with caplog.at_level(logging.WARNING):
        state = sampler.state_dict()
        assert "This checkpoint has no curriculum snapshot" in caplog.text
        sampler.update(Batch(*columns([("p1", False)], 2)))
    assert (state["snapshot"], sampler.version) == ("", 1)
    resumed = make_sampler(pool(8), 4)
    resumed.load_state_dict(state)
    assert list(resumed) == list(rows)


def test_a_seed_of_0_is_a_seed(settings, make_sampler):
    settings(**AWAY, seed=5)
    drawn = {seed: list(make_sampler(pool(12), 4, seed)) for seed in (0, 5, None)}
    assert drawn[None] == drawn[5] != drawn[0]

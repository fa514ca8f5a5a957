"""Whole training runs of what users pick instead: DTV's filter, and the gradient of the head alone."""

import pytest
import torch
from trainkit import problems_of

from gradalign import Client
from gradalign_trainer.policy.policy import Policy


def test_the_filter_needs_no_scorer_and_drops_what_contradicts(play, monkeypatch):
    seen_tables = []
    update = Policy.update

    def spied(self, scored, *arguments, rollout_weights=None, **more):
        seen_tables.append(list(rollout_weights.values()))
        return update(self, scored, *arguments, rollout_weights=rollout_weights, **more)

    monkeypatch.setattr(Policy, "update", spied)
    result, seen = play(None, strategy="random", mode="filter")
    assert result.fallbacks == 0
    last = seen.reports[-1].figures
    assert (last["pool_rollouts"], last["validation_rollouts"], last["update_rollouts"]) == (0, 0, 2 * 2 * 4 * 4)
    table = torch.tensor(seen_tables)
    assert table.shape == (4, 4, 4)
    assert set(table.unique().tolist()) <= {0.0, 1.0}
    assert last["kept"] == pytest.approx(float(table[2:].mean()))
    assert 0 < float(table.mean()) <= 1


def test_sketches_of_the_head_rank_by_the_scorer(scorer, play, run_id):
    result, seen = play(scorer.url, alignment="head")
    assert result.fallbacks == 0
    last = seen.reports[-1].figures
    assert last["scored"] == 24
    assert last["selected_alignment"] > last["alignment"]
    assert sum(row.times_selected for row in problems_of(scorer.url, run_id).values()) == 2 * 8
    with Client(scorer.url, run_id=run_id) as client:
        assert client.run().kind == "sketches"

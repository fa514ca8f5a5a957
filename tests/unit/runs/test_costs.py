"""What a run costs: every rollout by purpose, and sums that survive a checkpoint."""

import json

from gradalign_trainer.rounds.costs import PURPOSES, Costs


def test_all_purposes_count_and_are_told_apart():
    costs = Costs({"pool": 1024, "validation": 768, "update": 256}, seconds=2.0, cpu_seconds=1.5)
    assert costs.total_rollouts == 2048
    assert costs.figures() == {
        "rollouts": 2048,
        "pool_rollouts": 1024,
        "validation_rollouts": 768,
        "update_rollouts": 256,
        "seconds": 2.0,
        "cpu_seconds": 1.5,
    }


def test_costs_survive_a_checkpoint():
    costs = Costs({"pool": 5, "validation": 0, "update": 7}, 1.25, 1.0)
    assert Costs.from_state(json.loads(json.dumps(costs.state()))) == costs
    assert Costs.from_state({}) == Costs(dict.fromkeys(PURPOSES, 0))

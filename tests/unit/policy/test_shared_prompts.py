"""Sketches and products where a group shares its prompt in one row."""

import logging
from dataclasses import replace

import pytest
import torch

from gradalign.sketch import Sketcher
from gradalign_trainer.config.training import TrainConfig
from gradalign_trainer.grpo.generation import Sampling, generate
from gradalign_trainer.grpo.rollouts import ScoredRollouts
from gradalign_trainer.policy.gradients import GradientMeter
from gradalign_trainer.policy.policy import Policy
from gradalign_trainer.policy.products import ProductMeter
from gradalign_trainer.worlds.arithmetic import CHARACTERS, arithmetic_problem
from gradalign_trainer.worlds.tinymodel import character_tokenizer, tiny_model

PROBLEMS = [arithmetic_problem(a, "+", 7 * a + 3) for a in range(6)]
TOKENIZER = character_tokenizer(CHARACTERS)


@pytest.fixture
def model():
    return tiny_model(TOKENIZER, seed=0, positions=64)


@pytest.fixture
def both(model):
    """The same rollouts, a row a group and a row a rollout; problem 2 has no signal."""
    prompts = [problem.prompt for problem in PROBLEMS]
    rollouts = generate(model, TOKENIZER, prompts, Sampling(4, 5, share_prompts=True), torch.Generator().manual_seed(0))
    advantages = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    advantages[2] = 0
    shared = ScoredRollouts(PROBLEMS, rollouts, advantages, advantages)
    return shared, replace(shared, rollouts=replace(rollouts, share_prompts=False))


def test_sketches_are_those_of_a_row_a_rollout_out_of_batched_backwards(model, both, caplog):
    meter = GradientMeter(model, Sketcher(model, dim=256), 4)
    with caplog.at_level(logging.WARNING):
        shared, plain = (meter.measure(scored).sketches for scored in both)
    assert not caplog.records  # a model that capture refuses is told of
    torch.testing.assert_close(shared, plain, rtol=1e-4, atol=1e-6)
    assert shared.norm(dim=1)[[0, 1, 3, 4, 5]].min() > 0


def test_sketches_of_single_rollouts_are_taken_apart(model, both):
    meter = GradientMeter(model, Sketcher(model, dim=256), 4)
    shared, plain = (meter.of_rollouts(scored) for scored in both)
    torch.testing.assert_close(shared, plain)
    assert shared.any()


@pytest.mark.parametrize("norms", ["none", "head"])
def test_products_are_those_of_a_row_a_rollout(model, both, tmp_path, norms):
    found = []
    for scored in both:
        meter = ProductMeter(TrainConfig(run_id="r", output=tmp_path, alignment="forward", norms=norms), model)
        meter.validation(scored)
        meter.keep(1, None)
        found.append(torch.tensor(meter.candidates(scored).products))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-6)
    assert found[0].any()


def test_an_update_leaves_out_groups_without_a_signal(both, tmp_path):
    tiny_model(TOKENIZER, seed=0, positions=64).save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    moved = []
    for share, scored in zip((True, False), both, strict=True):
        config = TrainConfig(run_id="r", output=tmp_path, device="cpu", share_prompts=share, problems_per_backward=4)
        policy = Policy(config, tmp_path / "model")
        norm = policy.update(scored)
        moved.append((norm, torch.cat([p.grad.flatten() for p in policy.parameters])))
    assert moved[0][0] == pytest.approx(moved[1][0], rel=1e-4)
    torch.testing.assert_close(moved[0][1], moved[1][1], rtol=1e-3, atol=1e-6)

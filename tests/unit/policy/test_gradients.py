import logging

import pytest
import torch
from torch import nn

from gradalign.sketch import Sketcher
from gradalign_trainer.grpo.generation import Sampling, generate
from gradalign_trainer.grpo.loss import problem_losses
from gradalign_trainer.grpo.rollouts import ScoredRollouts
from gradalign_trainer.policy.gradients import GradientMeter
from gradalign_trainer.worlds.arithmetic import CHARACTERS, arithmetic_problem
from gradalign_trainer.worlds.tinymodel import character_tokenizer, tiny_model

PROBLEMS = [arithmetic_problem(a, "+", 7 * a + 3) for a in range(6)]


@pytest.fixture
def policy():
    tokenizer = character_tokenizer(CHARACTERS)
    return tiny_model(tokenizer, seed=0, positions=32), tokenizer


def scored_by(policy, problems=PROBLEMS):
    """Rollouts of 4 with advantages of their own; problem 2 has no signal."""
    model, tokenizer = policy
    prompts = [problem.prompt for problem in problems]
    rollouts = generate(model, tokenizer, prompts, Sampling(4, 5), torch.Generator().manual_seed(0))
    advantages = torch.randn(len(problems), 4, generator=torch.Generator().manual_seed(1))
    advantages[2] = 0
    return ScoredRollouts(problems, rollouts, advantages, advantages)


def alone(policy, scored, sketcher):
    """Sketches and gradients, one backward a problem."""
    rows, gradients = [], []
    for problem in range(len(scored.problems)):
        policy[0].zero_grad()
        group, advantage = scored.rollouts.groups([problem]), scored.advantages[problem : problem + 1]
        problem_losses(policy[0], group, advantage).sum().backward()
        rows.append(sketcher.from_grads())
        gradients.append(torch.cat([p.grad.flatten() for p in policy[0].parameters()]).double())
    policy[0].zero_grad()
    return torch.stack(rows), torch.stack(gradients)


@pytest.mark.parametrize("size", [1, 4, 16])
def test_sketches_are_those_of_one_backward_a_problem_whatever_the_batch(policy, size):
    scored, sketcher = scored_by(policy), Sketcher(policy[0], dim=256)
    told = []
    measured = GradientMeter(policy[0], sketcher, size).measure(scored, advance=told.append)
    torch.testing.assert_close(measured.sketches, alone(policy, scored, sketcher)[0], rtol=1e-4, atol=1e-6)
    assert not measured.sketches[2].any()
    assert measured.dots is None
    assert sum(told) == 6
    assert all(parameter.grad is None for parameter in policy[0].parameters())


def test_shares_leave_their_sum_in_grad_and_sketches_unscaled(policy):
    scored, sketcher = scored_by(policy), Sketcher(policy[0], dim=256)
    rows, gradients = alone(policy, scored, sketcher)
    shares = torch.tensor([3.0, 1, 5, 2, 40, 7])
    measured = GradientMeter(policy[0], sketcher, 4).measure(scored, shares=shares)
    torch.testing.assert_close(measured.sketches, rows, rtol=1e-4, atol=1e-6)
    total = torch.cat([parameter.grad.flatten() for parameter in policy[0].parameters()])
    torch.testing.assert_close(total.double(), (shares[:, None].double() * gradients).sum(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scaled", [False, True])
def test_products_and_norms_are_exact(policy, scaled):
    scored, sketcher = scored_by(policy), Sketcher(policy[0], dim=64)
    _, gradients = alone(policy, scored, sketcher)
    against = {name: torch.randn_like(p) for name, p in sketcher.named()}
    unit = torch.cat([part.flatten() for part in against.values()]).double()
    shares = torch.full((6,), 9.0) if scaled else None
    measured = GradientMeter(policy[0], sketcher, 4).measure(scored, shares=shares, against=against)
    torch.testing.assert_close(measured.dots, gradients @ (unit / unit.norm()), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(measured.norms, gradients.norm(dim=1), rtol=1e-4, atol=1e-6)


def test_a_gradient_that_is_not_finite_leaves_the_others_as_they_are(policy, caplog):
    caplog.set_level(logging.WARNING)
    scored, sketcher = scored_by(policy), Sketcher(policy[0], dim=256)
    rows, gradients = alone(policy, scored, sketcher)
    against = {name: torch.randn_like(p) for name, p in sketcher.named()}
    meter = GradientMeter(policy[0], sketcher, 4)
    fine = meter.measure(scored, against=against)
    scored.advantages[1] = torch.tensor([1e38, -1e38, 1e38, -1e38])
    shares = torch.tensor([1.0, 1, 1, 2, 1, 1])
    measured = meter.measure(scored, shares=shares, against=against)
    rows[1], gradients[1] = 0, 0
    torch.testing.assert_close(measured.sketches, rows, rtol=1e-4, atol=1e-6)
    others = [0, 2, 3, 4, 5]
    torch.testing.assert_close(measured.dots[others], fine.dots[others], rtol=1e-4, atol=1e-6)
    total = torch.cat([parameter.grad.flatten() for parameter in policy[0].parameters()])
    torch.testing.assert_close(total.double(), (shares[:, None].double() * gradients).sum(0), rtol=1e-4, atol=1e-5)
    assert f"Problem {PROBLEMS[1].problem_id} counts as no signal" in caplog.text
    assert "one backward a problem" not in caplog.text
    assert policy[0].training is False


class Opaque(torch.autograd.Function):
    """Stands for a fused kernel, which torch's API does not see."""

    @staticmethod
    def forward(ctx, hidden, weight):
        ctx.save_for_backward(hidden, weight)
        return hidden @ weight.T

    @staticmethod
    def backward(ctx, gradient):
        hidden, weight = ctx.saved_tensors
        return gradient @ weight, gradient.flatten(0, 1).T @ hidden.flatten(0, 1)


class OpaqueHead(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.weight = nn.Parameter(head.weight.detach().clone())

    def forward(self, hidden):
        return Opaque.apply(hidden, self.weight)


def test_a_model_that_capture_refuses_takes_one_backward_a_problem(policy, caplog):
    caplog.set_level(logging.WARNING)
    policy[0].lm_head = OpaqueHead(policy[0].lm_head)
    scored, sketcher = scored_by(policy), Sketcher(policy[0], dim=256)
    meter = GradientMeter(policy[0], sketcher, 4)
    rows, _ = alone(policy, scored, sketcher)
    for _ in range(2):
        torch.testing.assert_close(meter.measure(scored).sketches, rows, rtol=1e-4, atol=1e-6)
    assert caplog.text.count("From now on gradients take one backward a problem") == 1
    assert "lm_head.weight" in caplog.text


def test_no_signal_at_all_is_all_zeros(policy):
    scored = scored_by(policy)
    scored.advantages.zero_()
    sketcher = Sketcher(policy[0], dim=32)
    assert not GradientMeter(policy[0], sketcher, 4).measure(scored).sketches.any()

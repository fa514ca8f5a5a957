"""Gradients of single rollouts and of the head alone, against backwards of their own; and the filter that compares them."""

import pytest
import torch

from gradalign import GradAlignError
from gradalign.sketch import Sketcher
from gradalign_trainer.grpo.generation import Sampling, generate
from gradalign_trainer.grpo.loss import problem_losses
from gradalign_trainer.grpo.rollouts import ScoredRollouts
from gradalign_trainer.policy.agreement import agreements
from gradalign_trainer.policy.gradients import GradientMeter
from gradalign_trainer.policy.sketches import head_of
from gradalign_trainer.worlds.arithmetic import CHARACTERS, arithmetic_problem
from gradalign_trainer.worlds.tinymodel import character_tokenizer, tiny_model

PROBLEMS = [arithmetic_problem(a, "+", 7 * a + 3) for a in range(5)]


@pytest.fixture(scope="module")
def model():
    return tiny_model(character_tokenizer(CHARACTERS), seed=0, positions=32)


@pytest.fixture(scope="module")
def scored(model):
    """Rollouts of 4 with advantages of their own; problem 2 has no signal."""
    prompts = [problem.prompt for problem in PROBLEMS]
    tokenizer = character_tokenizer(CHARACTERS)
    rollouts = generate(model, tokenizer, prompts, Sampling(4, 5), torch.Generator().manual_seed(0))
    advantages = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    advantages[2] = 0
    return ScoredRollouts(PROBLEMS, rollouts, advantages, advantages)


def gradient_of(model, scored, problem, rollout=None):
    """The whole gradient of a problem, or of one rollout's share of it, float64."""
    kept = torch.zeros(4)
    kept[slice(None) if rollout is None else rollout] = 1
    model.zero_grad()
    advantage = scored.advantages[problem : problem + 1] * kept
    problem_losses(model, scored.rollouts.groups([problem]), advantage).sum().backward()
    found = {name: parameter.grad.double().clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    return found


def flat(gradient):
    return torch.cat([part.flatten() for part in gradient.values()])


@pytest.mark.parametrize("size", [2, 16])
def test_sketches_of_rollouts_are_those_of_a_backward_each(model, scored, size):
    sketcher = Sketcher(model, dim=256)
    rows = GradientMeter(model, sketcher, size).of_rollouts(scored)
    assert rows.shape == (5, 4, 256)
    assert not rows[2].any()
    for problem, rollout in ((0, 0), (0, 3), (4, 1)):
        gradient = gradient_of(model, scored, problem, rollout)
        for name, parameter in model.named_parameters():
            parameter.grad = gradient[name].float()
        wanted = sketcher.from_grads()
        model.zero_grad()
        torch.testing.assert_close(rows[problem, rollout], wanted, rtol=1e-4, atol=1e-6)
    whole = GradientMeter(model, sketcher, size).measure(scored).sketches
    torch.testing.assert_close(rows.sum(1), whole, rtol=1e-4, atol=1e-6)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_values_are_the_mean_products_with_the_others():
    rows = torch.randn(7, 300, generator=torch.Generator().manual_seed(2))
    gram = rows.double() @ rows.double().T
    wanted = (gram.sum(1) - gram.diagonal()) / 6
    torch.testing.assert_close(agreements(rows), wanted)
    assert agreements(rows[:1]).tolist() == [0.0]


def test_a_long_gradient_does_not_vouch_for_itself():
    with_others = torch.tensor([[1.0, 0.0], [1.0, 0.1], [-9.0, 0.0]])
    assert (agreements(with_others) >= 0).tolist() == [
        False,
        False,
        False,
    ]  # it outweighs all others, which contradict it
    many = torch.cat([torch.tensor([[1.0, 0.0]]).repeat(12, 1), torch.tensor([[-9.0, 0.0]])])
    assert (agreements(many) >= 0).tolist() == [True] * 12 + [False]
    assert agreements(torch.zeros(3, 4)).tolist() == [0.0] * 3


def test_sketches_tell_the_values_of_whole_gradients(model, scored):
    """Within 6 of the error that a sketch of 4,096 makes of a product, |g_j| |sum of the others| / sqrt(4096)."""
    rows = GradientMeter(model, Sketcher(model, dim=4096), 8).of_rollouts(scored).flatten(0, 1)
    exact = torch.stack([flat(gradient_of(model, scored, p, i)) for p in range(5) for i in range(4)])
    error = exact.norm(dim=1) * (exact.sum(0) - exact).norm(dim=1) / 64 / 19
    assert ((agreements(rows) - agreements(exact)).abs() <= 6 * error + 1e-9).all()


def test_sketches_of_the_head_are_of_its_gradient_alone_and_no_backward_goes_past_it(model, scored):
    head = head_of(model)
    sketcher = Sketcher(head, dim=128)
    measured = GradientMeter(model, sketcher, 8, head=head).measure(scored)
    (name,) = [name for name, parameter in model.named_parameters() if parameter is head.weight]
    reached = []
    first = next(parameter for parameter in model.parameters() if parameter is not head.weight)
    handle = first.register_hook(reached.append)
    GradientMeter(model, sketcher, 8, head=head).measure(scored)
    handle.remove()
    assert reached == []
    for problem in range(5):
        head.weight.grad = gradient_of(model, scored, problem)[name].float()
        wanted = sketcher.from_grads()
        model.zero_grad()
        torch.testing.assert_close(measured.sketches[problem], wanted, rtol=1e-4, atol=1e-6)
    assert not measured.sketches[2].any()
    assert not head._forward_pre_hooks


def test_a_model_without_a_head_to_train_is_told_so(model):
    head = model.get_output_embeddings()
    head.weight.requires_grad_(False)
    with pytest.raises(GradAlignError, match="one that is frozen"):
        head_of(model)
    head.weight.requires_grad_(True)
    assert head_of(model) is head
